"""Whether a package was calibrated on what it is judged by: then its figures are better than it is."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.package.folder import Manifest
from edgepack.shown import printable
from edgepack.validation.quality.texts import Text

# Less is chance: two texts have a phrase of eight words in common now and then.
LEAST_SHARE = 0.05
MOST_NAMES = 5


def overlap_notes(manifest: Manifest, texts: Sequence[Text]) -> list[str]:
    """One line where `texts` are in the calibration text of a package, as far as its sketch tells; else nothing."""
    calibration, sketch = manifest.calibration, manifest.calibration_sketch
    if calibration is None or sketch is None:
        return []
    shares = {text.name: sketch.share_of(text.said) for text in texts}
    found = [f"about {100 * share:.0f} % of {name}" for name, share in shares.items() if share >= LEAST_SHARE]
    if not found:
        return []
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    named = printable(", ".join(found[:MOST_NAMES]))
    text = printable(calibration.text)
    return [f"of the judging text, {named}{more} are in the calibration text {text}: its figures flatter the package"]
