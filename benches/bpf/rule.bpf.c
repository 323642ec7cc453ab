// SPDX-License-Identifier: MIT OR Apache-2.0 The whole rule for the site of the packet rate bench,
// and nothing else: no counters, no second engine, no reload, no return path. Both an XDP program
// and a tc classifier: a minimal hand-written implementation. The relay set is a BPF hash map for
// each IP version.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

// Interface to benches/pps/peers/rule.rs.
#define MARK 0x28 // AF11 in the ToS byte
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define MAX_RELAYS 131072
#define MAX_TAGS 2
enum port { UPLINK, INCOMING, PORTS };

struct endpoint4 {
	__be32 address;
	__be16 port;
	__u16 zero;
};

struct endpoint6 {
	struct in6_addr address;
	__be16 port;
	__u16 zero;
};

// Set before the program is loaded, so that the verifier treats it as constants.
const volatile struct {
	__be32 host4;
	__be32 host6[4];
	__u32 interfaces[PORTS];
	// Destination and source MAC address of a steered frame.
	__u32 steered_macs[3];
} site;

MAP(HASH, relays4, MAX_RELAYS, struct endpoint4, __u8);
MAP(HASH, relays6, MAX_RELAYS, struct endpoint6, __u8);
MAP(DEVMAP, ports, PORTS, __u32, __u32);

// RFC 1624 equation 3.
static __always_inline __sum16 replace_word(__sum16 checksum, __u16 old, __u16 new)
{
	__u32 sum = (__u16)~checksum + (__u32)(__u16)~old + new;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// To a relay, or an answer: unmarked. All other TCP: marked.
static __always_inline void set_dscp4(struct iphdr *ip, __u8 dscp)
{
	__u16 *first = (__u16 *)ip, old = *first;

	if ((ip->tos & 0xfc) == dscp)
		return;
	ip->tos = dscp | (ip->tos & 0x03);
	ip->check = replace_word(ip->check, old, *first);
}

static __always_inline void set_dscp6(struct ipv6hdr *ip, __u8 dscp)
{
	__be16 *first = (__be16 *)ip;

	*first = (*first & bpf_htons(0xf03f)) | bpf_htons(dscp << 4);
}

static __always_inline bool is_host(const struct in6_addr *address)
{
	return address->s6_addr32[0] == site.host6[0] && address->s6_addr32[1] == site.host6[1] &&
	       address->s6_addr32[2] == site.host6[2] && address->s6_addr32[3] == site.host6[3];
}

// A TCP header up to and including its control bits.
struct tcp {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledgement;
	__u8 offset;
	__u8 control;
};

// Whether the segment answers a remote host's segment, as in bpf/parse.h: SYN and ACK, or RST
// without ACK or with sequence number 0. Neither exit nor relay traffic.
static __always_inline bool answers(const struct tcp *tcp)
{
	__u8 control = tcp->control;

	if ((control & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
		return true;
	return control & TCP_RST && (!(control & TCP_ACK) || !tcp->sequence);
}

// Marks or clears the frame's DSCP, and returns the egress port.
static __always_inline enum port apply(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	void *at = ethernet + 1;
	struct tcp *tcp;
	bool relay = false, exit;
	__be16 type;

	if (at > end)
		return UPLINK;
	type = ethernet->h_proto;
	for (int i = 0; i < MAX_TAGS; i++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if (at + 4 > end)
			return UPLINK;
		type = *(__be16 *)(at + 2);
		at += 4;
	}
	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at;
		struct endpoint4 to = {};

		if ((void *)(ip + 1) > end || ip->saddr != site.host4 || ip->protocol != IPPROTO_TCP ||
		    ip->frag_off & bpf_htons(0x3fff))
			return UPLINK;
		tcp = at + ip->ihl * 4;
		if ((void *)(tcp + 1) > end)
			return UPLINK;
		exit = !answers(tcp);
		if (exit) {
			to.address = ip->daddr;
			to.port = tcp->destination;
			relay = bpf_map_lookup_elem(&relays4, &to);
			exit = !relay;
		}
		set_dscp4(ip, exit ? MARK : 0);
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = at;
		struct endpoint6 to = {};

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end || !is_host(&ip->saddr) || ip->nexthdr != IPPROTO_TCP)
			return UPLINK;
		exit = !answers(tcp);
		if (exit) {
			to.address = ip->daddr;
			to.port = tcp->destination;
			relay = bpf_map_lookup_elem(&relays6, &to);
			exit = !relay;
		}
		set_dscp6(ip, exit ? MARK : 0);
	}
	if (!relay)
		return UPLINK;
	for (int i = 0; i < 3; i++)
		((__u32 *)data)[i] = site.steered_macs[i];
	return INCOMING;
}

// The floor for what must read a frame: six bits of the IP header and its checksum change, and no
// rule says of which frames.
SEC("xdp")
int touch_xdp(struct xdp_md *context)
{
	struct ethhdr *ethernet = (void *)(long)context->data;
	void *ip = ethernet + 1, *end = (void *)(long)context->data_end;

	if (ip + sizeof(struct ipv6hdr) > end)
		return XDP_ABORTED;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		set_dscp4(ip, MARK);
	else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		set_dscp6(ip, MARK);
	return bpf_redirect_map(&ports, UPLINK, XDP_DROP);
}

SEC("xdp")
int rule_xdp(struct xdp_md *context)
{
	enum port port = apply((void *)(long)context->data, (void *)(long)context->data_end);

	return bpf_redirect_map(&ports, port, XDP_DROP);
}

SEC("tc")
int rule_tc(struct __sk_buff *packet)
{
	enum port port;

	if (bpf_skb_pull_data(packet, 0))
		return TC_ACT_SHOT;
	port = apply((void *)(long)packet->data, (void *)(long)packet->data_end);
	return bpf_redirect(site.interfaces[port], 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
