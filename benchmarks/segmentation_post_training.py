"""Segmentation decoders of the zoo on real street images: mean IoU before and after calibration.

Each decoder is trained in float as in ``segmentation_street.py`` (minutes), unless ``--runs`` has
it already, then calibrated by the script that users run: plainly, on all training images, and with
qualities, on 64 of them. Mean IoU at the targets' own resolution, on images that nothing was
trained or calibrated with.

    python benchmarks/segmentation_post_training.py --data FOLDER

``FOLDER`` is in the Cityscapes layout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ptq_accuracy import environment
from segmentation_street import CALIBRATED, FLOAT, run

from edgeailite.quantization.methods import QUALITIES

DECODERS = ("deeplabv3plus", "unet_aspp", "fpn_aspp", "bifpn_aspp")
SCHEMES = {
    "PACT2": [],
    "WC8_AT8": ["--quantize_method", "ptc_fx", "--qconfig_type", "WC8_AT8"],
}
PLAIN = "plain"


def print_decoder(decoder: str, ways: list[str], data: Path, runs: Path) -> None:
    """Train a decoder if need be, calibrate it in each way, print the rows."""
    named = ("--model_name", f"{decoder}_mobilenetv2_tv_edgeailite")
    trained = runs / decoder
    if not (trained / "result.json").is_file():
        run(trained, data, *FLOAT, *named)
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    start = result["val"]["miou"]
    rows = [f"| {decoder} | float | | {start:.2f} | | | |"]
    weights = ("--pretrained", str(trained / "checkpoint.pth"), "--verify", "True")
    for scheme, options in SCHEMES.items():
        for way in ways:
            quality = () if way == PLAIN else ("--ptq", way)
            folder = runs / f"{decoder}_{scheme}_{way}"
            result, _, seconds = run(
                folder, data, *CALIBRATED, *named, *weights, *options, *quality
            )
            miou, differing = result["val"]["miou"], result["verify"]["mismatches"]
            rows.append(
                f"| {decoder} | {scheme} | {way} | {miou:.2f} | {miou - start:+.2f} | "
                f"{' / '.join(map(str, differing.values()))} of {result['verify']['num_values']} | "
                f"{seconds:.0f} |"
            )
    print("\n".join(rows), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("data/checkpoints/segmentation_street"))
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--ways", nargs="+", choices=(PLAIN, *QUALITIES), default=[PLAIN, "fast"])
    args = parser.parse_args()
    print(f"# Segmentation decoders, calibrated\n\n{environment()}\n")
    print("| decoder | scheme | calibration | mIoU % | change | logits that differ | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for decoder in args.decoders:
        print_decoder(decoder, args.ways, args.data, args.runs)


if __name__ == "__main__":
    main()
