//! How much memory this process takes, by the kernel's count.

use crate::backend::Fallible;

/// What is resident now, in MiB.
pub(crate) fn resident() -> Fallible<f64> {
    told("VmRSS:")
}

/// The most that ever was, in MiB.
pub(crate) fn peak() -> Fallible<f64> {
    told("VmHWM:")
}

fn told(name: &str) -> Fallible<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.ok_or_else(|| format!("no {name} in /proc/self/status"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
