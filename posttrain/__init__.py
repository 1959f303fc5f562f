"""SFT then DPO, and an honest answer to whether DPO helped. Knows nothing of ZenML; usable from a notebook."""

import os

__version__ = "0.2.0"

# Telemetry of every dependency is off unless the user has said otherwise; set before any of them is imported.
for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ZENML_ANALYTICS_OPT_IN": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)
