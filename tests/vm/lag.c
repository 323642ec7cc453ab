/*
 * lag FLOWS RATE SECONDS END END: UDP flows between two network namespaces, and their losses.
 *
 * An END is NAMESPACE,DEVICE,MAC,IPV4, the namespace by its name of ip-netns(8). Each end sends
 * FLOWS flows to the other one, both ends together RATE frames per second at even intervals. A
 * frame has its flow and a sequence number. The flows differ in the source port, so that a hash of
 * ports (layer3+4) spreads them. Sending ends after SECONDS or with SIGTERM, receiving DRAIN later.
 * Then it prints, END being 0 or 1,
 *
 *   flow END FLOW SENT RECEIVED DUPLICATED REORDERED NEXT
 *   gap END FLOW BEGIN LENGTH MISSING
 *   end END DURATION PAUSE SILENCE OVERFLOW UNLISTED
 *
 * of the flows that END sends. NEXT is the highest received number plus one. A gap is the time
 * between two frames of a flow that arrive one after the other, if it is at least LEAST_GAP and
 * frames between them are MISSING. DURATION is the time of sending, PAUSE the longest time between
 * two rounds of the sender, SILENCE the longest time between two frames of a flow, OVERFLOW the
 * number of frames that did not fit into the receive ring, UNLISTED the number of gaps that are not
 * printed. Times are nanoseconds, BEGIN of CLOCK_REALTIME; the kernel stamps arriving frames.
 *
 * lag now: prints CLOCK_REALTIME in nanoseconds.
 *
 * Two processes with UDP sockets send and receive 13,000 frames per second in an emulated guest of
 * two CPUs; this one 33,000. It has a thread for each direction and packet sockets: one call sends
 * a frame of each flow, and received frames are in shared memory. The devices need no address.
 *
 * C and pthread, linked statically. Exit status: 1 if a socket fails, with a message.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT 40000
#define MAX_FLOWS 64
#define MAX_FRAMES (1u << 20) /* of a flow */
#define MAX_GAPS 1000
#define SLOT_BYTES 256u
#define SLOTS 16384u
#define BLOCK_BYTES (1u << 16)
#define SECOND 1000000000ll
#define MILLISECOND 1000000ll
#define LEAST_GAP (10 * MILLISECOND)
#define DRAIN (500 * MILLISECOND)
/* How far a late sender catches up. More at once would not fit into the 256 entries of a veth. */
#define CATCH_UP (25 * MILLISECOND)

struct frame {
	struct ether_header ethernet;
	struct iphdr ip;
	struct udphdr udp;
	unsigned int flow, number;
	char padding[58];
} __attribute__((packed));

struct flow {
	unsigned char seen[MAX_FRAMES / 8];
	unsigned int sent, received, duplicated, reordered, next;
	long long arrival;
};

struct gap {
	unsigned int flow, missing;
	long long begin, length;
};

struct end {
	char device[IFNAMSIZ];
	unsigned char mac[6];
	struct in_addr address;
	int sender, receiver;
	unsigned char *ring;
};

/* The flows from one end to the other. */
static struct direction {
	struct end *from, *to;
	unsigned int slot; /* the next of the receiver's ring */
	struct flow flows[MAX_FLOWS];
	struct gap gaps[MAX_GAPS];
	unsigned int listed, unlisted;
	long long duration, pause, silence;
} directions[2];

static struct end ends[2];
static unsigned int flow_count;
static long long interval, seconds;
static volatile sig_atomic_t stopped;

static long long now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

static void sleep_until(long long then)
{
	struct timespec time = { then / SECOND, then % SECOND };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
		;
}

static void fail(const char *what)
{
	fprintf(stderr, "lag: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int packet_socket(const char *device, int protocol)
{
	struct sockaddr_ll here = {
		.sll_family = AF_PACKET, .sll_protocol = htons(protocol),
		.sll_ifindex = if_nametoindex(device),
	};
	int descriptor = socket(AF_PACKET, SOCK_RAW, 0);

	if (descriptor < 0 || !here.sll_ifindex ||
	    bind(descriptor, (struct sockaddr *)&here, sizeof(here)))
		fail(device);
	return descriptor;
}

static void open_end(struct end *end, char *text)
{
	struct tpacket_req ring = {
		.tp_block_size = BLOCK_BYTES, .tp_block_nr = SLOTS * SLOT_BYTES / BLOCK_BYTES,
		.tp_frame_size = SLOT_BYTES, .tp_frame_nr = SLOTS,
	};
	int version = TPACKET_V2, on = 1, namespace;
	char path[256], address[INET_ADDRSTRLEN];
	unsigned char *mac = end->mac;
	char name[128];

	if (sscanf(text, "%127[^,],%15[^,],%hhx:%hhx:%hhx:%hhx:%hhx:%hhx,%15s", name, end->device,
		   mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5, address) != 9 ||
	    inet_pton(AF_INET, address, &end->address) != 1) {
		errno = EINVAL;
		fail(text);
	}
	snprintf(path, sizeof(path), "/run/netns/%s", name);
	namespace = open(path, O_RDONLY | O_CLOEXEC);
	if (namespace < 0 || setns(namespace, CLONE_NEWNET))
		fail(path);
	close(namespace);
	/* Protocol 0: it receives nothing. */
	end->sender = packet_socket(end->device, 0);
	if (setsockopt(end->sender, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on)))
		fail("PACKET_QDISC_BYPASS");
	end->receiver = packet_socket(end->device, ETH_P_IP);
	if (setsockopt(end->receiver, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) ||
	    setsockopt(end->receiver, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)))
		fail("PACKET_RX_RING");
	end->ring = mmap(NULL, SLOTS * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			 end->receiver, 0);
	if (end->ring == MAP_FAILED)
		fail("mmap");
}

static void count(struct direction *direction, const struct frame *frame, long long arrival)
{
	struct flow *flow = &direction->flows[frame->flow];
	unsigned int number = frame->number;
	unsigned char bit = 1 << (number & 7);

	if (flow->seen[number / 8] & bit) {
		flow->duplicated++;
		return;
	}
	flow->seen[number / 8] |= bit;
	flow->received++;
	if (number < flow->next)
		flow->reordered++;
	if (flow->arrival) {
		long long length = arrival - flow->arrival;

		if (length > direction->silence)
			direction->silence = length;
		if (length >= LEAST_GAP && number > flow->next) {
			if (direction->listed < MAX_GAPS)
				direction->gaps[direction->listed++] = (struct gap){
					frame->flow, number - flow->next, flow->arrival, length,
				};
			else
				direction->unlisted++;
		}
	}
	flow->arrival = arrival;
	if (number >= flow->next)
		flow->next = number + 1;
}

/* Counts the frames in the receiver's ring. */
static void receive(struct direction *direction)
{
	for (;;) {
		unsigned char *slot = direction->to->ring + direction->slot * SLOT_BYTES;
		struct tpacket2_hdr *header = (struct tpacket2_hdr *)slot;
		const struct frame *frame;

		if (!(__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
			return;
		frame = (const struct frame *)(slot + header->tp_mac);
		if (header->tp_len == sizeof(*frame) && frame->udp.dest == htons(PORT) &&
		    frame->ip.saddr == direction->from->address.s_addr &&
		    frame->flow < flow_count && frame->number < MAX_FRAMES)
			count(direction, frame, header->tp_sec * SECOND + header->tp_nsec);
		__atomic_store_n(&header->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
		direction->slot = (direction->slot + 1) % SLOTS;
	}
}

static unsigned short checksum(struct iphdr header)
{
	unsigned short words[sizeof(header) / 2];
	unsigned int sum = 0;

	memcpy(words, &header, sizeof(header));
	for (size_t i = 0; i < sizeof(header) / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

static void build(const struct direction *direction, struct frame *frame, unsigned int flow)
{
	unsigned short bytes = sizeof(*frame) - sizeof(frame->ethernet);

	*frame = (struct frame){
		.ethernet.ether_type = htons(ETH_P_IP),
		.ip = { .version = 4, .ihl = 5, .tot_len = htons(bytes), .ttl = 64,
			.frag_off = htons(IP_DF), .protocol = IPPROTO_UDP,
			.saddr = direction->from->address.s_addr,
			.daddr = direction->to->address.s_addr },
		.udp = { .source = htons(PORT + 1 + flow), .dest = htons(PORT),
			 .len = htons(bytes - sizeof(frame->ip)) },
		.flow = flow,
	};
	memcpy(frame->ethernet.ether_shost, direction->from->mac, ETH_ALEN);
	memcpy(frame->ethernet.ether_dhost, direction->to->mac, ETH_ALEN);
	frame->ip.check = checksum(frame->ip);
}

/* Sends a frame of each flow. A frame that the kernel refuses is a lost one. */
static void send_round(const struct direction *direction, struct mmsghdr *messages)
{
	for (unsigned int done = 0; done < flow_count;) {
		int sent = sendmmsg(direction->from->sender, messages + done, flow_count - done, 0);

		if (sent < 0 && errno != ENOBUFS)
			fail("sendmmsg");
		done += sent > 0 ? sent : 1;
	}
}

static void *run(void *argument)
{
	struct direction *direction = argument;
	struct frame frames[MAX_FLOWS];
	struct iovec parts[MAX_FLOWS];
	struct mmsghdr messages[MAX_FLOWS] = {};
	long long began = now(CLOCK_MONOTONIC), due = began, last = began;

	for (unsigned int flow = 0; flow < flow_count; flow++) {
		build(direction, &frames[flow], flow);
		parts[flow] = (struct iovec){ &frames[flow], sizeof(frames[flow]) };
		messages[flow].msg_hdr = (struct msghdr){ .msg_iov = &parts[flow], .msg_iovlen = 1 };
	}
	for (unsigned int number = 0; number < MAX_FRAMES && !stopped; number++) {
		long long time;

		sleep_until(due);
		time = now(CLOCK_MONOTONIC);
		if (time > began + seconds * SECOND)
			break;
		if (time - last > direction->pause)
			direction->pause = time - last;
		last = time;
		for (unsigned int flow = 0; flow < flow_count; flow++) {
			frames[flow].number = number;
			direction->flows[flow].sent++;
		}
		send_round(direction, messages);
		receive(direction);
		due += interval;
		if (due < time - CATCH_UP)
			due = time - CATCH_UP;
	}
	direction->duration = now(CLOCK_MONOTONIC) - began;
	sleep_until(now(CLOCK_MONOTONIC) + DRAIN);
	receive(direction);
	return NULL;
}

static void print(int number, const struct direction *direction)
{
	struct tpacket_stats statistics = {};
	socklen_t bytes = sizeof(statistics);

	if (getsockopt(direction->to->receiver, SOL_PACKET, PACKET_STATISTICS, &statistics, &bytes))
		fail("PACKET_STATISTICS");
	for (unsigned int i = 0; i < flow_count; i++) {
		const struct flow *flow = &direction->flows[i];

		printf("flow %d %u %u %u %u %u %u\n", number, i, flow->sent, flow->received,
		       flow->duplicated, flow->reordered, flow->next);
	}
	for (unsigned int i = 0; i < direction->listed; i++) {
		const struct gap *gap = &direction->gaps[i];

		printf("gap %d %u %lld %lld %u\n", number, gap->flow, gap->begin, gap->length,
		       gap->missing);
	}
	printf("end %d %lld %lld %lld %u %u\n", number, direction->duration, direction->pause,
	       direction->silence, statistics.tp_drops, direction->unlisted);
}

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

int main(int argument_count, char **arguments)
{
	struct sigaction action = { .sa_handler = stop };
	pthread_t threads[2];
	long long rate;

	if (argument_count == 2 && !strcmp(arguments[1], "now"))
		return printf("%lld\n", now(CLOCK_REALTIME)) < 0;
	if (argument_count != 6) {
		fputs("usage: lag FLOWS RATE SECONDS END END\n", stderr);
		return 2;
	}
	flow_count = atoi(arguments[1]);
	rate = atoll(arguments[2]);
	seconds = atoll(arguments[3]);
	if (flow_count < 1 || flow_count > MAX_FLOWS || rate < 1 || seconds < 1) {
		fputs("lag: FLOWS, RATE or SECONDS is out of range\n", stderr);
		return 2;
	}
	interval = 2 * SECOND * flow_count / rate;
	sigaction(SIGTERM, &action, NULL);
	for (int i = 0; i < 2; i++) {
		open_end(&ends[i], arguments[4 + i]);
		directions[i].from = &ends[i];
		directions[i].to = &ends[!i];
	}
	for (int i = 0; i < 2; i++) {
		errno = pthread_create(&threads[i], NULL, run, &directions[i]);
		if (errno)
			fail("pthread_create");
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++)
		print(i, &directions[i]);
	return 0;
}
