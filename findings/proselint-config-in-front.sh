#!/usr/bin/env bash
# proselint: `proselint --config FILE check PAGE` does not read FILE, and says nothing of it; `proselint check --config FILE
# PAGE` does. The help of the program shows both places.
#
# The cause is argparse: the option is declared for the program and, with the default None, for the subcommand, whose
# default overwrites what was given in front of it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check proselint==0.16.0

cd "$folder"
echo 'It was very good.' > page.md
echo '{"checks": {"weasel_words": false}}' > settings.json
count() { { "$folder/venv/bin/proselint" "$@" || true; } | grep -c 'weasel_words' || true; }

in_front=$(count --config "$folder/settings.json" check page.md)
behind=$(count check --config "$folder/settings.json" page.md)
echo "proselint 0.16.0, a check that the file turns off"
echo "  --config FILE check page.md: found $in_front times"
echo "  check --config FILE page.md: found $behind times"
[ "$in_front,$behind" = 1,0 ] || { echo "the behaviour has changed" >&2; exit 1; }
