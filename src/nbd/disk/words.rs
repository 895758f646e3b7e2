//! Numbers of bytes in words, for people.
//!
//! Whole units where it is exact, else one decimal. Must never show more bytes than there are. Used by all messages about
//! disks.

/// Returns bytes with their unit: `64 KiB`, `1.5 GiB`, `100 bytes`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let order = n.checked_ilog2().unwrap_or(0) / 10;
    let Some(unit) = order.checked_sub(1).and_then(|i| UNITS.get(i as usize)) else {
        return format!("{n} bytes");
    };
    let shift = order.saturating_mul(10);
    match n.trailing_zeros() >= shift {
        true => format!("{} {unit}", n >> shift),
        // Cut, not rounded: never more than the real number.
        false => format!(
            "{}.{} {unit}",
            n >> shift,
            ((n >> shift.saturating_sub(10)) & 1023).saturating_mul(10) >> 10
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn units_are_whole_where_it_is_exact() {
        let said = [0, 1023, 1024, 1536, (1 << 40) - 1, 1 << 40, u64::MAX].map(bytes);
        assert_eq!(said, ["0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "1023.9 GiB", "1 TiB", "15.9 EiB"]);
    }
}
