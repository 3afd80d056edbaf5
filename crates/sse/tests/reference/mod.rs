//! The yardstick of tests and fuzz targets: slow, and simple enough to be believed.

/// The standard's algorithm, read from its text, one byte at a time: the data of each event that has a data line.
pub(crate) fn reference(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let (mut lines, mut line, mut at) = (vec![], vec![], 0);
    while at < text.len() {
        match text[at] {
            b'\r' | b'\n' => {
                if text[at] == b'\r' && text.get(at + 1) == Some(&b'\n') {
                    at += 1;
                }
                lines.push(std::mem::take(&mut line));
            }
            byte => line.push(byte),
        }
        at += 1;
    }
    // A last event that is cut short counts here, unlike in the standard: the relay completes it.
    lines.push(line);
    lines.push(vec![]);
    let (mut events, mut data) = (vec![], None::<Vec<u8>>);
    for line in lines {
        if line.is_empty() {
            events.extend(data.take());
            continue;
        }
        let colon = line.iter().position(|b| *b == b':');
        let (name, value) = colon.map_or((&line[..], &b""[..]), |c| (&line[..c], &line[c + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if name == b"data" {
            match &mut data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => data = Some(value.to_vec()),
            }
        }
    }
    events
}
