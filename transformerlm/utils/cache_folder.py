"""The user's cache folder: for what can be made again, but takes a while."""

import os
import sys
from pathlib import Path


def user_cache_folder() -> Path | None:
    """Return this project's folder in the user's cache folder, which may not exist yet; None without a home."""
    base = Path(os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # unset; or relative, and the XDG base directory specification ignores that
        try:
            home = Path.home()
        except RuntimeError:
            return None
        base = home / {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    return base / "transformerlm"
