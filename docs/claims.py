"""Writes `claims.md` from the committed results: `python docs/claims.py`."""

from pathlib import Path

from experiments.studies import claims

PAGE = Path(__file__).parent / "claims.md"

if __name__ == "__main__":
    PAGE.write_text(claims.markdown(), encoding="utf-8")
