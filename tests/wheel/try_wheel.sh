#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment outside of the checkout, makes a project there, and trains in it twice: by
# `posttrain run --set`, then by `zenml pipeline run` with a file of the same values, which must find every step in the cache.
#   tests/wheel/try_wheel.sh [PYTHON]
# PYTHON is that of an environment with all dependencies (.venv by default). The fresh environment borrows them: only posttrain is
# installed into it, from the wheel.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath --no-symlinks "${1:-.venv/bin/python}")
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH VIRTUAL_ENV

"$python" -m build --no-isolation --wheel --outdir "$folder/dist" . >/dev/null
"$python" -m venv --without-pip "$folder/venv"
"$python" -m pip --python "$folder/venv/bin/python" install --quiet --disable-pip-version-check --no-deps "$folder"/dist/*.whl
# A folder on the path, whose own .pth files are not read: the checkout, which .venv has by one of them, is not seen.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
printf '#!%s\nfrom zenml_cli import cli\ncli()\n' "$folder/venv/bin/python" >"$folder/venv/bin/zenml"
chmod +x "$folder/venv/bin/zenml"

export PATH=$folder/venv/bin:$PATH HOME=$folder/home POSTTRAIN_CACHE=$folder/cache
export ZENML_CONFIG_PATH=$folder/zenml ZENML_LOCAL_STORES_PATH=$folder/stores ZENML_ANALYTICS_OPT_IN=false
mkdir "$folder/home"
cd "$folder"
case $(python -c 'import posttrain; print(posttrain.__file__)') in
"$folder"/*) ;;
*) echo "posttrain was not imported from the wheel" >&2 && exit 1 ;;
esac
posttrain --version
posttrain init project
if posttrain init project; then echo "posttrain init wrote into a project" >&2 && exit 1; fi
cd project
posttrain check | tail -2

# The demo, shortened.
python - <<'PYTHON'
import yaml

with open("configs/demo.yaml") as file:
    document = yaml.safe_load(file)
config = document["parameters"]["config"]
config["data"] |= {"sources": [{"path": "demo", "limit": 400}], "validation_size": 0.1, "test_size": 0.1}
config["sft"]["max_steps"] = config["dpo"]["max_steps"] = 12
config["evaluation"]["generations"]["n"] = 8
with open("short.yaml", "w") as file:
    yaml.safe_dump(document, file)
PYTHON
posttrain run --set data.sources.0.limit=400 --set data.validation_size=0.1 --set sft.max_steps=12 --set dpo.max_steps=12 \
    --set evaluation.generations.n=8
zenml pipeline run dpo_pipeline -c short.yaml
python - <<'PYTHON'
from zenml.client import Client

steps = Client().list_pipeline_runs(sort_by="desc:created").items[0].steps
assert steps, "the run has no steps"
anew = sorted(name for name, step in steps.items() if str(step.status) != "cached")
never_cached = {"conclude", "find_champion", "load_preferences", "resolve_base"}
assert set(anew) <= never_cached, f"computed again although --set had the same values: {anew}"
print("computed again:", ", ".join(anew))
PYTHON
posttrain report --html report.html
test -s report.html
echo "The wheel works: $(basename "$folder"/dist/*.whl)"
