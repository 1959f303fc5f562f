"""One file per pipeline: which step feeds which."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# ZenML puts the repository on the path only while it imports a pipeline, but the steps are imported later.
sys.path.append(str(ROOT))
