//! The usual service of a port.
//!
//! Names are those of IANA's Service Name and Transport Protocol Port Number Registry
//! (<https://www.iana.org/assignments/service-names-port-numbers>) in their usual spelling, or of
//! common use where that differs. A port does not prove a service.

use super::row::Encryption::{self, Encrypted, Plain, Unknown};

/// Port, usual service, whether that service encrypts from the first byte; sorted by port.
const SERVICES: [(u16, &str, Encryption); 107] = [
    (7, "Echo", Plain),
    (9, "Discard", Plain),
    (13, "Daytime", Plain),
    (20, "FTP data", Plain),
    (21, "FTP", Plain),
    (22, "SSH", Encrypted),
    (23, "Telnet", Plain),
    (25, "SMTP", Plain),
    (37, "Time", Plain),
    (43, "WHOIS", Plain),
    (53, "DNS", Plain),
    (70, "Gopher", Plain),
    (79, "Finger", Plain),
    (80, "HTTP", Plain),
    (81, "HTTP, alternative", Plain),
    (88, "Kerberos", Plain),
    (110, "POP3", Plain),
    (113, "Ident", Plain),
    (119, "NNTP", Plain),
    (135, "Microsoft RPC", Plain),
    (139, "NetBIOS session", Plain),
    (143, "IMAP", Plain),
    (179, "BGP", Plain),
    (194, "IRC, as registered", Plain),
    (389, "LDAP", Plain),
    (443, "HTTPS", Encrypted),
    (445, "SMB", Plain),
    (464, "Kerberos password", Plain),
    (465, "SMTP submission over TLS", Encrypted),
    (515, "Line printer", Plain),
    (543, "Kerberos login", Plain),
    (544, "Kerberos shell", Plain),
    (554, "RTSP", Plain),
    (563, "NNTP over TLS", Encrypted),
    (587, "SMTP submission", Plain),
    (631, "IPP", Plain),
    (636, "LDAP over TLS", Encrypted),
    (706, "SILC", Encrypted),
    (749, "Kerberos administration", Plain),
    (853, "DNS over TLS", Encrypted),
    (873, "rsync", Plain),
    (989, "FTP data over TLS", Encrypted),
    (990, "FTP over TLS", Encrypted),
    (992, "Telnet over TLS", Encrypted),
    (993, "IMAP over TLS", Encrypted),
    (994, "IRC over TLS, as registered", Encrypted),
    (995, "POP3 over TLS", Encrypted),
    (1080, "SOCKS", Plain),
    (1194, "OpenVPN", Encrypted),
    (1433, "Microsoft SQL Server", Plain),
    (1521, "Oracle Database", Plain),
    (1723, "PPTP", Plain),
    (1863, "MSN Messenger", Plain),
    (1883, "MQTT", Plain),
    (1935, "RTMP", Plain),
    (2082, "cPanel", Plain),
    (2083, "cPanel over TLS", Encrypted),
    (2086, "WebHost Manager", Plain),
    (2087, "WebHost Manager over TLS", Encrypted),
    (2095, "cPanel webmail", Plain),
    (2096, "cPanel webmail over TLS", Encrypted),
    (2401, "CVS", Plain),
    (3128, "HTTP proxy", Plain),
    (3306, "MySQL", Plain),
    (3389, "Remote Desktop", Plain),
    (3690, "Subversion", Plain),
    (4321, "Referral WHOIS", Plain),
    (4643, "Virtuozzo panel", Encrypted),
    (5050, "Yahoo! Messenger", Plain),
    (5190, "ICQ", Plain),
    (5222, "XMPP", Plain),
    (5223, "XMPP over TLS", Encrypted),
    (5228, "Google Play services", Encrypted),
    (5432, "PostgreSQL", Plain),
    (5900, "VNC", Plain),
    (6379, "Redis", Plain),
    (6667, "IRC", Plain),
    (6679, "IRC over TLS", Encrypted),
    (6697, "IRC over TLS", Encrypted),
    (6881, "BitTorrent", Plain),
    (6882, "BitTorrent", Plain),
    (6883, "BitTorrent", Plain),
    (6884, "BitTorrent", Plain),
    (6885, "BitTorrent", Plain),
    (6886, "BitTorrent", Plain),
    (6887, "BitTorrent", Plain),
    (6888, "BitTorrent", Plain),
    (6889, "BitTorrent", Plain),
    (8000, "HTTP, alternative", Plain),
    (8008, "HTTP, alternative", Plain),
    (8074, "Gadu-Gadu", Plain),
    (8080, "HTTP, alternative", Plain),
    (8082, "HTTP, alternative", Plain),
    (8087, "HTTP, alternative", Plain),
    (8332, "Bitcoin RPC", Plain),
    (8333, "Bitcoin", Plain),
    (8443, "HTTPS, alternative", Encrypted),
    (8883, "MQTT over TLS", Encrypted),
    (8888, "HTTP, alternative", Plain),
    (9001, "Tor", Encrypted),
    (9418, "Git", Plain),
    (10000, "Webmin", Unknown),
    (11371, "OpenPGP key server", Plain),
    (19294, "Google Talk", Unknown),
    (25565, "Minecraft", Plain),
    (50002, "Electrum over TLS", Encrypted),
    (64738, "Mumble", Encrypted),
];

/// The entry of a port; `None` if the table does not have it.
fn row(port: u16) -> Option<&'static (u16, &'static str, Encryption)> {
    let at = SERVICES.binary_search_by_key(&port, |&(port, ..)| port);
    SERVICES.get(at.ok()?)
}

/// The name of the usual service of a port.
pub fn name(port: u16) -> Option<&'static str> {
    row(port).map(|&(_, name, _)| name)
}

/// Whether the usual service of a port encrypts from the first byte. A service that may upgrade to
/// TLS, such as SMTP, counts as plain: the port does not tell whether it did.
pub fn encryption(port: u16) -> Encryption {
    row(port).map_or(Unknown, |&(.., encryption)| encryption)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_there_once_and_in_order() {
        for pair in SERVICES.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} and {}", pair[0].0, pair[1].0);
        }
        for (port, name, _) in SERVICES {
            assert!(port > 0 && !name.trim().is_empty(), "{port}");
        }
    }

    #[test]
    fn every_row_is_found() {
        for (port, known, encrypts) in SERVICES {
            assert_eq!((name(port), encryption(port)), (Some(known), encrypts));
        }
    }

    #[test]
    fn well_known_ports_have_the_expected_encryption() {
        for port in [22, 443, 465, 636, 853, 989, 990, 993, 995, 5223, 6697, 8443] {
            assert_eq!(encryption(port), Encrypted, "{port}");
        }
        for port in [21, 23, 25, 80, 110, 143, 587, 5222, 6667, 6881, 6889, 8080] {
            assert_eq!(encryption(port), Plain, "{port}");
        }
        for port in [0, 1, 6890, 40_000, 65_535] {
            assert_eq!((name(port), encryption(port)), (None, Unknown), "{port}");
        }
        assert_eq!(name(443), Some("HTTPS"));
    }
}
