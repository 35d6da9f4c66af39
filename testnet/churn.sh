#!/usr/bin/env bash
# Twelve peers on this machine, of which every ten seconds one is killed and another started, while three of them ask without a pause.
#
#   testnet/churn.sh [SECONDS]      300 by default
#
# Every answer must be the right one, or say which units nobody held; the peers that asked may have no more memory and open files at the
# end than halfway. Prints how many answers there were, how many of them lost a peer on the way, and what the peers had.
set -euo pipefail
cd "$(dirname "$0")/.."
BRIGADE_CHURN=${1:-300} cargo test --test meshes answers_are_right_while_peers_come_and_go -- --nocapture
