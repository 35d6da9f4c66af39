//! `brigade network new` and `brigade network invite`.

use std::net::IpAddr;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::bail;
use clap::Subcommand;

use crate::api::internal::InviteBody;
use crate::cli::client;
use crate::cli::house;
use crate::cli::output;
use crate::config::NetworkKind;
use crate::config::P2P_PORT;
use crate::config::address;
use crate::config::networks;
use crate::daemon::views::StatusView;
use crate::keys::NetworkSecret;
use crate::keys::invite::Invite;

/// What can be done with private networks.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make a private network: draw its key, keep it in the data directory, print an invite.
    ///
    /// Whoever has the invite can join. The first peer is started with `brigade up --network NAME`, the others with
    /// `brigade up --invite TOKEN`.
    New {
        /// What to call it: letters, digits, dots, dashes and underscores.
        name: String,
        /// Address under which this machine can be reached: HOST:PORT or a multiaddress. By default its address on the
        /// local network and port 2744. May be given several times.
        #[arg(long, value_name = "ADDR")]
        address: Vec<String>,
    },
    /// Print an invite to a private network: that of the running peer, with its addresses, or one that is kept here.
    Invite {
        /// The network. By default that of the running peer.
        name: Option<String>,
    },
}

pub(crate) async fn network(root: &Path, command: NetworkCommand) -> anyhow::Result<()> {
    match command {
        NetworkCommand::New { name, address } => new(root, name, &address),
        NetworkCommand::Invite { name } => invite(root, name).await,
    }
}

fn new(root: &Path, name: String, given: &[String]) -> anyhow::Result<()> {
    let addresses = if given.is_empty() {
        local_addresses().iter().map(|ip| format!("{}/tcp/{P2P_PORT}", prefix(*ip))).collect()
    } else {
        address::parse_all(given, NetworkKind::Private)?.iter().map(ToString::to_string).collect()
    };
    let invite = Invite::new(name, Some(NetworkSecret::new(house::random()?)), addresses)?;
    networks::create(root, &invite)?;
    output::note(format!(
        "Network {} is made. Start its first peer here:\n  brigade up --network {0}",
        invite.network()
    ));
    match invite.addresses() {
        [] => output::note("Others join with this token and an address (--join):"),
        addresses => {
            output::note(format!("Others join, if they can reach {}, with this token:", addresses.join(" or ")));
        }
    }
    Ok(output::line(invite.to_string())?)
}

fn prefix(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("/ip4/{ip}"),
        IpAddr::V6(ip) => format!("/ip6/{ip}"),
    }
}

/// The addresses that this machine would send from; finding them out sends nothing.
fn local_addresses() -> Vec<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849): only the route is asked for.
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")]
        .into_iter()
        .filter_map(|(from, to)| {
            let socket = UdpSocket::bind(from).ok()?;
            socket.connect(to).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
        .collect()
}

async fn invite(root: &Path, name: Option<String>) -> anyhow::Result<()> {
    if let Some(found) = client::find(root).await? {
        let status: StatusView = found.get("status").await?;
        if name.as_ref().is_none_or(|name| *name == status.network) {
            let InviteBody { invite } = found.get("invite").await?;
            return Ok(output::line(invite)?);
        }
    }
    let Some(name) = name else { bail!("no peer runs on {}: name the network", root.display()) };
    match networks::read(root, &name)? {
        Some(invite) => Ok(output::line(invite.to_string())?),
        None => bail!("network \"{name}\" is not known here: `brigade network new {name}` makes it"),
    }
}
