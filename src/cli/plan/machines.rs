//! Machines described in a file, TOML or JSON; `testnet/machines.toml` is one with comments.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::config::memory;
use crate::config::memory::BadMemory;
use crate::placement::plan::Link;
use crate::placement::plan::Machine;
use crate::placement::plan::Machines;

/// The most machines (arbitrary).
const MAX_MACHINES: u32 = 1_024;

/// The most memory of one (arbitrary).
const MAX_MEMORY: Bytes = Bytes(1 << 50);

/// The links of a site, and between two, where the file doesn't say (arbitrary: Ethernet of a Gbit/s; a line of 100 Mbit/s with the round trip
/// of one country).
const USUAL: (Numbers, Numbers) =
    (Numbers { round_trip_ms: 0.3, gbit: 1.0 }, Numbers { round_trip_ms: 20.0, gbit: 0.1 });

/// Machines, and what they and their sites are called.
#[derive(Clone, Debug, Default)]
pub(super) struct Park {
    pub(super) machines: Machines,
    /// By site.
    pub(super) sites: Vec<String>,
    /// What people should know of the figures.
    pub(super) notes: Vec<String>,
}

/// Why a file of machines cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MachinesError {
    /// The system does not give it.
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is neither TOML nor JSON, or of another form; the message has the line.
    #[error("{}: {message}", path.display())]
    Form { path: PathBuf, message: String },
    /// There are none.
    #[error("{} describes no machine: it needs a [[machine]] at least", path.display())]
    Empty { path: PathBuf },
    /// A number that no machine has.
    #[error("{}: {what} is {got}, expected {expected}", path.display())]
    Number { path: PathBuf, what: String, expected: String, got: String },
    /// Memory that is no amount.
    #[error("{}: memory of {machine}: {source}", path.display())]
    Memory {
        path: PathBuf,
        machine: String,
        #[source]
        source: BadMemory,
    },
    /// A name that stands for nothing, or for two things.
    #[error("{}: {what}", path.display())]
    Name { path: PathBuf, what: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    site: Vec<SiteEntry>,
    #[serde(default)]
    between: Vec<BetweenEntry>,
    #[serde(default)]
    machine: Vec<MachineEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteEntry {
    name: String,
    round_trip_ms: Option<f64>,
    gbit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BetweenEntry {
    sites: [String; 2],
    round_trip_ms: Option<f64>,
    gbit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineEntry {
    name: String,
    #[serde(default = "one")]
    count: u32,
    site: Option<String>,
    memory: String,
    bandwidth_gb: f64,
    compute_gmac: f64,
    #[serde(default = "one")]
    threads: u32,
}

const fn one() -> u32 {
    1
}

/// A link in the file's units.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    round_trip_ms: f64,
    gbit: f64,
}

impl Park {
    /// Reads the file at `path`: JSON if its name ends so, else TOML.
    pub(super) fn read(path: &Path) -> Result<Self, MachinesError> {
        let text = fs::read_to_string(path).map_err(|source| MachinesError::Io { path: path.to_owned(), source })?;
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let parsed = match is_json {
            true => serde_json::from_str(&text).map_err(|error| error.to_string()),
            false => toml::from_str(&text).map_err(|error| error.to_string()),
        };
        let form =
            |message: String| MachinesError::Form { path: path.to_owned(), message: message.trim_end().to_owned() };
        Reader { path }.park(parsed.map_err(form)?)
    }
}

/// Turns what was parsed into what can be used.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn park(&self, file: File) -> Result<Park, MachinesError> {
        if file.machine.is_empty() {
            return Err(MachinesError::Empty { path: self.path.to_owned() });
        }
        let sites = self.sites(&file)?;
        let index: BTreeMap<&str, usize> = sites.iter().map(String::as_str).zip(0..).collect();
        let mut links = vec![vec![self.link("between sites", USUAL.1)?; sites.len()]; sites.len()];
        for (site, row) in links.iter_mut().enumerate() {
            row[site] = self.link("a site", USUAL.0)?;
        }
        for SiteEntry { name, round_trip_ms, gbit } in &file.site {
            let site = index[name.as_str()];
            links[site][site] = self.link(&format!("site \"{name}\""), or(*round_trip_ms, *gbit, USUAL.0))?;
        }
        for BetweenEntry { sites: [one, other], round_trip_ms, gbit } in &file.between {
            let what = format!("between \"{one}\" and \"{other}\"");
            let known = |name: &String| index.get(name.as_str()).copied();
            let (Some(from), Some(to)) = (known(one), known(other)) else {
                return Err(self.name(format!("{what}: there is no such site")));
            };
            if from == to {
                return Err(self.name(format!("{what}: that is one site; put its link into its [[site]]")));
            }
            let link = self.link(&what, or(*round_trip_ms, *gbit, USUAL.1))?;
            (links[from][to], links[to][from]) = (link, link);
        }
        let mut machines = Vec::new();
        for entry in &file.machine {
            let site = entry.site.as_deref().map_or(0, |site| index[site]);
            self.add(entry, site, &mut machines)?;
        }
        Ok(Park { machines: Machines { machines, links }, sites, notes: Vec::new() })
    }

    /// Every site that is named, in the order of their first mention; one without a name where machines name none.
    fn sites(&self, file: &File) -> Result<Vec<String>, MachinesError> {
        let mut sites: Vec<String> = Vec::new();
        for site in &file.site {
            if sites.contains(&site.name) {
                return Err(self.name(format!("site \"{}\" is described twice", site.name)));
            }
            sites.push(site.name.clone());
        }
        let described = sites.len();
        for machine in &file.machine {
            match &machine.site {
                Some(site) if sites.contains(site) => {}
                Some(site) if described > 0 => {
                    return Err(self.name(format!(
                        "machine \"{}\" is at \"{site}\", but there is no such [[site]]",
                        machine.name
                    )));
                }
                Some(site) => sites.push(site.clone()),
                None if described > 1 => {
                    return Err(self.name(format!("machine \"{}\" needs the site that it is at", machine.name)));
                }
                None => {}
            }
        }
        if sites.is_empty() {
            sites.push("here".to_owned());
        }
        Ok(sites)
    }

    fn add(&self, entry: &MachineEntry, site: usize, machines: &mut Vec<Machine>) -> Result<(), MachinesError> {
        let of = |what: &str| format!("{what} of machine \"{}\"", entry.name);
        let count = self.within(of("count"), entry.count.into(), 1.0, MAX_MACHINES.into())? as usize;
        self.within("the number of machines".to_owned(), (machines.len() + count) as f64, 1.0, MAX_MACHINES.into())?;
        let threads = self.within(of("threads"), entry.threads.into(), 1.0, 4_096.0)? as u32;
        // A hundred times what there is.
        let bandwidth = self.within(of("bandwidth_gb"), entry.bandwidth_gb, 0.001, 1e6)?;
        let compute = self.within(of("compute_gmac"), entry.compute_gmac, 0.001, 1e9)?;
        let machine = format!("machine \"{}\"", entry.name);
        let memory = memory::parse(&entry.memory, None).map_err(|source| MachinesError::Memory {
            path: self.path.to_owned(),
            machine,
            source,
        })?;
        self.within(of("memory"), memory.0 as f64, 1.0, MAX_MEMORY.0 as f64)?;
        for number in 1..=count {
            let name = if count == 1 { entry.name.clone() } else { format!("{}-{number}", entry.name) };
            if machines.iter().any(|machine| machine.name == name) {
                return Err(self.name(format!("two machines are called \"{name}\"")));
            }
            machines.push(Machine {
                name,
                site,
                memory,
                bandwidth: (bandwidth * 1e9) as u64,
                compute: (compute * 1e9) as u64,
                threads,
            });
        }
        Ok(())
    }

    fn link(&self, what: &str, Numbers { round_trip_ms, gbit }: Numbers) -> Result<Link, MachinesError> {
        let round_trip = self.within(format!("round_trip_ms of {what}"), round_trip_ms, 0.0, 60_000.0)?;
        let gbit = self.within(format!("gbit of {what}"), gbit, 1e-6, 1e6)?;
        Ok(Link { round_trip: Span((round_trip * 1e3) as u64), rate: (gbit * 1e9 / 8.0) as u64 })
    }

    fn within(&self, what: String, got: f64, least: f64, most: f64) -> Result<f64, MachinesError> {
        if (least..=most).contains(&got) {
            return Ok(got);
        }
        let expected = format!("{least} to {most}");
        Err(MachinesError::Number { path: self.path.to_owned(), what, expected, got: got.to_string() })
    }

    fn name(&self, what: String) -> MachinesError {
        MachinesError::Name { path: self.path.to_owned(), what }
    }
}

fn or(round_trip_ms: Option<f64>, gbit: Option<f64>, usual: Numbers) -> Numbers {
    Numbers { round_trip_ms: round_trip_ms.unwrap_or(usual.round_trip_ms), gbit: gbit.unwrap_or(usual.gbit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Park, MachinesError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Park::read(&path)
    }

    fn refused(text: &str) -> String {
        read("machines.toml", text).unwrap_err().to_string()
    }

    const ONE: &str = "[[machine]]\nname = \"a\"\nmemory = \"24GiB\"\nbandwidth_gb = 800\ncompute_gmac = 5e4\n";

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "[[site]]\nname = \"attic\"\nround_trip_ms = 0.5\n[[site]]\nname = \"office\"\n
            [[between]]\nsites = [\"office\", \"attic\"]\nround_trip_ms = 12\ngbit = 0.5\n
            [[machine]]\nname = \"a\"\ncount = 2\nsite = \"office\"\nmemory = \"8GiB\"\nbandwidth_gb = 1.5\ncompute_gmac = 20\n";
        let json = r#"{ "site": [{ "name": "attic", "round_trip_ms": 0.5 }, { "name": "office" }],
            "between": [{ "sites": ["office", "attic"], "round_trip_ms": 12, "gbit": 0.5 }],
            "machine": [{ "name": "a", "count": 2, "site": "office", "memory": "8GiB",
                "bandwidth_gb": 1.5, "compute_gmac": 20 }] }"#;

        let (park, other) = (read("m.toml", toml).unwrap(), read("m.json", json).unwrap());

        assert_eq!((&park.machines, &park.sites), (&other.machines, &other.sites));
        assert_eq!(park.sites, ["attic", "office"]);
        let Machines { machines, links } = park.machines;
        assert_eq!(machines.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>(), ["a-1", "a-2"]);
        let expected = (1, Bytes(8 << 30), 1_500_000_000, 20_000_000_000);
        let Machine { site, memory, bandwidth, compute, .. } = machines[1];
        assert_eq!((site, memory, bandwidth, compute), expected);
        assert_eq!(links[0][1], Link { round_trip: Span::millis(12), rate: 62_500_000 });
        assert_eq!(links[0][0], Link { round_trip: Span(500), rate: 125_000_000 });
        assert_eq!(links[1][0], links[0][1]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert!(refused("").contains("describes no machine"));
        assert!(refused("[[machine]]\nname = 3\n").contains("line 2"));
        assert!(refused(&format!("{ONE}ram = 3\n")).contains("line 6"));
        assert!(read("m.json", "{\n\"machine\": 3}").unwrap_err().to_string().contains("line 2"));
        assert!(refused(&ONE.replace("800", "0")).contains("bandwidth_gb of machine \"a\" is 0"));
        assert!(refused(&ONE.replace("800", "nan")).contains("bandwidth_gb"));
        assert!(refused(&ONE.replace("5e4", "1e99")).contains("compute_gmac"));
        assert!(refused(&ONE.replace("24GiB", "plenty")).contains("memory of machine \"a\""));
        assert!(refused(&ONE.replace("24GiB", "9000000TiB")).contains("memory of machine \"a\""));
        assert!(refused(&format!("{ONE}count = 0\n")).contains("count"));
        assert!(
            refused(&format!("{ONE}count = 1000\n{}count = 1000\n", ONE.replace("\"a\"", "\"b\""))).contains("2000")
        );
        assert!(refused(&format!("{ONE}{ONE}")).contains("two machines are called \"a\""));
        assert!(refused(&format!("[[site]]\nname = \"x\"\n{ONE}site = \"y\"\n")).contains("\"y\""));
        assert!(refused(&format!("[[between]]\nsites = [\"x\", \"y\"]\n{ONE}")).contains("no such site"));
        assert!(Park::read(Path::new("/nowhere/m.toml")).unwrap_err().to_string().contains("/nowhere/m.toml"));
    }
}
