//! Writes pcap and pcapng captures byte by byte.

use exitmark_lab::Random;

/// 2023-11-14T22:13:20Z
pub(super) const NOW: u32 = 1_700_000_000;

/// Option codes: the end of a list, and options of an interface.
pub(super) const END: (u16, &[u8]) = (0, b"");
pub(super) const IF_NAME: u16 = 2;
pub(super) const IF_TSRESOL: u16 = 9;
pub(super) const IF_TZONE: u16 = 10;
pub(super) const IF_FCSLEN: u16 = 13;
pub(super) const IF_TSOFFSET: u16 = 14;

pub(crate) struct Written {
    is_little: bool,
    pub(crate) bytes: Vec<u8>,
}

impl Written {
    /// A file with a section with these options.
    pub(crate) fn new(is_little: bool, options: &[(u16, &[u8])]) -> Self {
        let mut file = Self {
            is_little,
            bytes: Vec::new(),
        };
        file.section(is_little, options);
        file
    }

    fn word(&self, number: u32) -> [u8; 4] {
        match self.is_little {
            true => number.to_le_bytes(),
            false => number.to_be_bytes(),
        }
    }

    fn half(&self, number: u16) -> [u8; 2] {
        match self.is_little {
            true => number.to_le_bytes(),
            false => number.to_be_bytes(),
        }
    }

    fn words<const N: usize>(&mut self, numbers: [u32; N]) {
        let words = numbers.map(|number| self.word(number));
        self.bytes.extend(words.as_flattened());
    }

    /// A block with a correct length, including padding.
    pub(crate) fn block(&mut self, kind: u32, body: &[u8]) -> &mut Self {
        let padding = vec![0; body.len().wrapping_neg() % 4];
        let total = self.word(u32::try_from(12 + body.len() + padding.len()).unwrap());
        let block = [&self.word(kind)[..], &total, body, &padding, &total].concat();
        self.bytes.extend(block);
        self
    }

    fn options(&self, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        for (code, value) in options {
            list.extend(self.half(*code));
            list.extend(self.half(u16::try_from(value.len()).unwrap()));
            list.extend(*value);
            list.resize(list.len().next_multiple_of(4), 0);
        }
        list
    }

    pub(super) fn section(&mut self, is_little: bool, options: &[(u16, &[u8])]) -> &mut Self {
        self.is_little = is_little;
        let fields = [
            &self.word(0x1a2b_3c4d)[..],
            &self.half(1),
            &self.half(0),
            &[0xff; 8],
            &self.options(options),
        ]
        .concat();
        self.block(0x0a0d_0d0a, &fields)
    }

    pub(crate) fn interface(
        &mut self,
        link: u16,
        snaplen: u32,
        options: &[(u16, &[u8])],
    ) -> &mut Self {
        let fields = [
            &self.half(link)[..],
            &self.half(0),
            &self.word(snaplen),
            &self.options(options),
        ]
        .concat();
        self.block(1, &fields)
    }

    /// An Enhanced Packet Block.
    pub(super) fn enhanced(
        &mut self,
        interface: u32,
        ticks: u64,
        frame: &[u8],
        cut_off: u32,
        options: &[(u16, &[u8])],
    ) -> &mut Self {
        let mut body = self.word(interface).to_vec();
        self.packet(&mut body, ticks, frame, cut_off);
        body.extend(self.options(options));
        self.block(6, &body)
    }

    /// The obsolete Packet Block: a 16-bit interface number, and a drop count.
    pub(super) fn obsolete(&mut self, interface: u16, ticks: u64, frame: &[u8]) -> &mut Self {
        let mut body = [self.half(interface), self.half(0xffff)].concat();
        self.packet(&mut body, ticks, frame, 0);
        self.block(2, &body)
    }

    pub(crate) fn simple(&mut self, frame: &[u8]) -> &mut Self {
        let length = self.word(u32::try_from(frame.len()).unwrap());
        self.block(3, &[&length[..], frame].concat())
    }

    fn packet(&self, body: &mut Vec<u8>, ticks: u64, frame: &[u8], cut_off: u32) {
        let length = u32::try_from(frame.len()).unwrap();
        let [high, low] =
            [ticks >> 32, ticks & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
        for word in [high, low, length, length + cut_off] {
            body.extend(self.word(word));
        }
        body.extend(frame);
        body.resize(body.len().next_multiple_of(4), 0);
    }
}

/// A time in microseconds, the usual resolution, `after` microseconds after [`NOW`].
pub(super) fn micros(after: u64) -> u64 {
    u64::from(NOW) * 1_000_000 + after
}

/// A pcap file by its magic number; record headers are longer by `more` bytes.
pub(super) fn pcap(
    magic: u32,
    is_little: bool,
    link: u32,
    frames: &[Vec<u8>],
    more: usize,
) -> Vec<u8> {
    let mut file = Written {
        is_little,
        bytes: Vec::new(),
    };
    file.words([magic]);
    file.bytes.extend([file.half(2), file.half(4)].concat());
    file.words([0, 0, 65_535, link]);
    for (frame, second) in frames.iter().zip(NOW..) {
        let length = u32::try_from(frame.len()).unwrap();
        file.words([second, 999, length, length]);
        file.bytes.extend(vec![7; more]);
        file.bytes.extend(frame);
    }
    file.bytes
}

/// A file with every block type, in random order and with random options.
pub(super) fn anything(random: &mut Random, frames: &[Vec<u8>]) -> Vec<u8> {
    // Comments, texts of sections and interfaces, and unknown options.
    const TEXTS: [u16; 4] = [1, 2, 3, 77];
    const COMMENTS: [u16; 4] = [1, 1, 77, 0x8001];
    if random.percent(20) {
        let magic = random.one_of([0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34]);
        let more = if magic == 0xa1b2_cd34 { 8 } else { 0 };
        let link = random.one_of([1, 0x4400_0001, 0x1400_0001, 101, 113, 276]);
        return pcap(magic, random.percent(50), link, frames, more);
    }
    let values = [(); 40].map(|()| {
        let length = random.below(12);
        (0..length).map(|_| random.byte()).collect::<Vec<_>>()
    });
    let options = |random: &mut Random, codes: [u16; 4]| -> Vec<(u16, &[u8])> {
        let mut list: Vec<(u16, &[u8])> = Vec::new();
        for _ in 0..random.below(4) {
            list.push((random.one_of(codes), &values[random.below(values.len())]));
        }
        if random.percent(50) {
            list.push(END);
        }
        list
    };
    let mut file = Written::new(random.percent(50), &options(random, TEXTS));
    // Ticks per second of each interface.
    let mut interfaces = Vec::new();
    let mut rest = frames;
    while let [frame, others @ ..] = rest {
        match random.below(12) {
            0 if !interfaces.is_empty() && random.percent(30) => {
                let is_little = random.percent(50);
                file.section(is_little, &options(random, TEXTS));
                interfaces.clear();
            }
            0 | 1 => {
                let link = random.one_of([1, 1, 1, 101, 113, 276, 105, 147, 239]);
                let (resolution, ticks) = random.one_of([
                    (0, 1),
                    (3, 1000),
                    (6, 1_000_000),
                    (9, 1_000_000_000),
                    (0x80, 1),
                    (0x8a, 1024),
                ]);
                let is_said = random.percent(50);
                let resolution = [resolution];
                let mut offset = random.one_of([0_i64, 3600, -3600]).to_be_bytes();
                if file.is_little {
                    offset.reverse();
                }
                let mut list = options(random, TEXTS);
                let others: [(u16, &[u8]); 3] = [
                    (IF_TSOFFSET, &offset),
                    (IF_TZONE, &[0, 0, 14, 16]),
                    (IF_FCSLEN, &[4]),
                ];
                for option in others {
                    if random.percent(30) {
                        list.insert(0, option);
                    }
                }
                if is_said {
                    list.insert(0, (IF_TSRESOL, &resolution));
                }
                file.interface(link, random.one_of([0, 65_535, 262_144]), &list);
                interfaces.push(if is_said { ticks } else { 1_000_000 });
            }
            2 => {
                // Secrets and unknown blocks. (tshark shows custom blocks as packets.)
                let kind = random.one_of([10, 0x8000_0bad, 77]);
                let mut body: Vec<u8> = (0..8 + random.below(60)).map(|_| random.byte()).collect();
                if kind == 10 {
                    // A Decryption Secrets Block: the kind of secrets, and their length.
                    let length = u32::try_from(body.len()).unwrap();
                    let front = [0x544c_534b, length].map(|number| file.word(number));
                    body.splice(..0, front.into_iter().flatten());
                }
                file.block(kind, &body);
            }
            _ if interfaces.is_empty() => {}
            kind => {
                let interface = random.below(interfaces.len());
                let seconds = u64::from(NOW) + random.below(1000) as u64;
                let ticks = seconds * interfaces[interface] + random.below(2) as u64;
                match kind {
                    3 => file.simple(frame),
                    4 => file.obsolete(u16::try_from(interface).unwrap(), ticks, frame),
                    _ => {
                        let cut_off = random.one_of([0, 0, 1000]);
                        let list = options(random, COMMENTS);
                        let interface = u32::try_from(interface).unwrap();
                        file.enhanced(interface, ticks, frame, cut_off, &list)
                    }
                };
                rest = others;
            }
        }
    }
    file.bytes
}
