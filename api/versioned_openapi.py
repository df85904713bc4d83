"""Write docs/openapi.json, which clients are promised: `python -m api.versioned_openapi`.

`tests/api/test_compatibility.py` holds the application against it.
"""

import json
import tempfile
from pathlib import Path

from api.main import create_app
from registry.settings import Settings

PATH = Path(__file__).parents[1] / "docs" / "openapi.json"


def main() -> None:
    """Write the document of this version of the code."""
    with tempfile.TemporaryDirectory() as directory:
        document = create_app(Settings(data_dir=Path(directory))).openapi()
    PATH.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
