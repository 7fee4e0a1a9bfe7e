"""Render synthetic street scenes in the layout of Cityscapes: segmentation data without a download.

Every scene is drawn, nothing is photographed: a road with sidewalks between buildings and trees,
with cars, people, poles and signs, seen in perspective from a car, under changing light and with
sensor noise. Accuracies on them say that training works, not how good a network is on real streets.

    python data/make_street_scenes.py
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgeailite.datasets.cityscapes import IMAGE_SUFFIX, TARGET_SUFFIX
from edgeailite.files.folder import write_folder

DEFAULT_OUTPUT = Path(__file__).resolve().parent / "datasets" / "street_scenes"
SETTINGS_FILE = "street_scenes.json"
CITY = "synthetic"

# Labels of Cityscapes.
UNLABELED, ROAD, SIDEWALK, BUILDING, POLE, SIGN = 0, 7, 8, 11, 17, 20
VEGETATION, TERRAIN, SKY, PERSON, CAR = 21, 22, 23, 24, 26

# The image is drawn larger and reduced: smooth edges. Labels are picked, not mixed.
OVERSAMPLING = 2
CAMERA_HEIGHT = 1.4  # metres
NEAR, FAR = 2.5, 120.0  # metres

Colour = tuple[float, float, float]
Thing = tuple[float, Callable[..., None], tuple]
"""Distance in metres, what draws it, and its arguments after the canvas."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is rendered; the same settings give the same files."""

    num_train: int = 240
    num_val: int = 60
    width: int = 512
    height: int = 256
    seed: int = 0


class Canvas:
    """Image and labels that things are painted on, from far to near.

    World coordinates are metres: x to the right of the camera, y above the road, z ahead.

    Args:
        settings: Size of the image.
        rng: Source of the camera's tilt and of textures.
    """

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        self.rng = rng
        self.width = settings.width * OVERSAMPLING
        self.height = settings.height * OVERSAMPLING
        self.image = np.zeros((self.height, self.width, 3), np.float32)
        self.labels = np.full((self.height, self.width), UNLABELED, np.uint8)
        self.focal = self.width * rng.uniform(0.75, 0.95)
        self.horizon = self.height * rng.uniform(0.36, 0.48)
        self.centre = self.width * rng.uniform(0.42, 0.58)

    def project(self, points: Sequence[Sequence[float]]) -> np.ndarray:
        """World points (N, 3) to pixels (N, 2), int32; what is behind the camera comes to NEAR."""
        x, y, z = np.asarray(points, np.float64).T
        z = np.maximum(z, 0.5)
        u = self.centre + self.focal * x / z
        v = self.horizon + self.focal * (CAMERA_HEIGHT - y) / z
        limit = 20 * self.width
        return np.stack([u, v], 1).clip(-limit, limit).round().astype(np.int32)

    def fill(self, points: Sequence[Sequence[float]], colour: Colour, label: int | None) -> None:
        """Paint a polygon of world points; without a label only its colour."""
        self.fill_pixels(self.project(points), colour, label)

    def fill_pixels(self, polygon: np.ndarray, colour: Colour, label: int | None) -> None:
        """Paint a polygon of pixels (N, 2)."""
        cv2.fillPoly(self.image, [polygon], colour)
        if label is not None:
            cv2.fillPoly(self.labels, [polygon], label)

    def ellipse(
        self,
        centre: Sequence[float],
        radii: tuple[float, float],
        colour: Colour,
        label: int | None,
    ) -> None:
        """Paint an upright ellipse around a world point; radii in metres."""
        (pixel,) = self.project([centre])
        scale = self.focal / max(centre[2], 0.5)
        axes = tuple(max(1, round(radius * scale)) for radius in radii)
        target = (int(pixel[0]), int(pixel[1]))
        cv2.ellipse(self.image, target, axes, 0, 0, 360, colour, -1)
        if label is not None:
            cv2.ellipse(self.labels, target, axes, 0, 0, 360, label, -1)

    def upright(
        self, x: float, z: float, size: tuple[float, float], base: float, colour: Colour, label: int
    ) -> None:
        """Paint a rectangle that faces the camera, standing at height `base`."""
        half, top = size[0] / 2, base + size[1]
        corners = [(x - half, base, z), (x + half, base, z), (x + half, top, z), (x - half, top, z)]
        self.fill(corners, colour, label)


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255.0, channel * factor) for channel in colour)  # type: ignore[return-value]


def _grey(rng: np.random.Generator, low: float, high: float, tint: float = 8.0) -> Colour:
    level = rng.uniform(low, high)
    return tuple((level + rng.uniform(-tint, tint, 3)).clip(0, 255).tolist())  # type: ignore[return-value]


def _draw_sky(canvas: Canvas) -> None:
    rng = canvas.rng
    top = np.array([rng.uniform(90, 150), rng.uniform(140, 190), rng.uniform(200, 250)])
    bottom = np.array(_grey(rng, 200, 245))
    overcast = rng.uniform(0.0, 0.9)
    top = (1 - overcast) * top + overcast * bottom
    share = np.linspace(0, 1, canvas.height)[:, None, None] ** 0.7
    canvas.image[:] = (1 - share) * top + share * bottom
    clouds = cv2.resize(rng.normal(0, 14, (6, 10)), (canvas.width, canvas.height), interpolation=2)
    canvas.image += clouds[..., None].astype(np.float32)
    canvas.labels[:] = SKY


def _draw_ground(canvas: Canvas, half_road: float, sidewalk: tuple[float, float]) -> None:
    rng = canvas.rng
    horizon = round(canvas.horizon)
    grass = (rng.uniform(70, 110), rng.uniform(110, 150), rng.uniform(50, 80))
    canvas.image[horizon:] = grass
    canvas.labels[horizon:] = TERRAIN

    def strip(left: float, right: float, colour: Colour, label: int | None, z: tuple) -> None:
        canvas.fill(
            [(left, 0, z[0]), (right, 0, z[0]), (right, 0, z[1]), (left, 0, z[1])], colour, label
        )

    whole = (1.0, 400.0)
    paving = _grey(rng, 120, 175)
    strip(-half_road - sidewalk[0], half_road + sidewalk[1], paving, SIDEWALK, whole)
    curb = _shade(paving, 1.2)
    strip(-half_road - 0.15, half_road + 0.15, curb, SIDEWALK, whole)
    strip(-half_road, half_road, _grey(rng, 60, 115, 5), ROAD, whole)
    marking = _grey(rng, 200, 240, 5)
    offset = rng.uniform(0, 6)
    for z in np.arange(2.0 + offset, FAR, 6.0):
        strip(-0.07, 0.07, marking, None, (z, z + 3.0))
    if rng.random() < 0.3:
        z = rng.uniform(8, 30)
        for x in np.arange(-half_road + 0.3, half_road - 0.3, 0.9):
            strip(x, x + 0.45, marking, None, (z, z + 3.0))


def _draw_building(canvas: Canvas, side: int, edge: float, z: float, length: float) -> None:
    """A box beside the road: the wall along the street, the one that faces the camera, windows."""
    rng = canvas.rng
    height = rng.uniform(4.5, 16.0)
    wall = tuple(rng.uniform(90, 210) * np.array([1.0, rng.uniform(0.8, 1), rng.uniform(0.65, 1)]))
    sunny = 1.1 if side > 0 else 0.85
    depth = side * (abs(edge) + 12.0)
    front = [(edge, 0, z), (depth, 0, z), (depth, height, z), (edge, height, z)]
    canvas.fill(front, _shade(wall, 0.75), BUILDING)
    end = z + length
    along = [(edge, 0, z), (edge, 0, end), (edge, height, end), (edge, height, z)]
    canvas.fill(along, _shade(wall, sunny), BUILDING)
    window = _shade(_grey(rng, 40, 110), rng.uniform(0.7, 1.6))
    for y in np.arange(1.2, height - 1.2, 2.8):
        for start in np.arange(z + 0.8, end - 1.6, 2.4):
            pane = [(edge, y, start), (edge, y, start + 1.3), (edge, y + 1.5, start + 1.3)]
            canvas.fill([*pane, (edge, y + 1.5, start)], window, None)


def _draw_tree(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height = rng.uniform(3.5, 8.0)
    bark = (rng.uniform(60, 100), rng.uniform(45, 75), rng.uniform(30, 55))
    canvas.upright(x, z, (0.28, height * 0.5), 0.0, bark, VEGETATION)
    leaves = (rng.uniform(30, 90), rng.uniform(80, 140), rng.uniform(20, 60))
    for _ in range(14):
        dx, dy = rng.normal(0, 0.16, 2) * height
        radius = rng.uniform(0.1, 0.22) * height
        centre = (x + dx, height * 0.72 + dy, z)
        shaded = _shade(leaves, rng.uniform(0.6, 1.3))
        canvas.ellipse(centre, (radius, radius * 0.85), shaded, VEGETATION)


def _draw_pole(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height = rng.uniform(2.6, 6.0)
    colour = _grey(rng, 70, 150)
    canvas.upright(x, z, (0.14, height), 0.0, colour, POLE)
    if rng.random() < 0.7:
        base, size = height - 0.8, rng.uniform(0.6, 0.9)
        red, blue, yellow = (190, 30, 40), (30, 70, 170), (220, 190, 40)
        face = (red, blue, yellow)[rng.integers(3)]
        shape = rng.integers(3)
        if shape == 0:
            canvas.ellipse((x, base + size / 2, z), (size / 2, size / 2), face, SIGN)
            inner = size * 0.3
            canvas.ellipse((x, base + size / 2, z), (inner, inner), _grey(rng, 210, 245), SIGN)
        elif shape == 1:
            canvas.upright(x, z, (size, size), base, face, SIGN)
        else:
            top = (x, base + size, z)
            canvas.fill([(x - size / 2, base, z), (x + size / 2, base, z), top], face, SIGN)


def _draw_car(canvas: Canvas, x: float, z: float) -> None:
    """Seen from behind or ahead: shadow, side wall, body, cabin with window, wheels, lights."""
    rng = canvas.rng
    width, height, length = rng.uniform(1.6, 1.9), rng.uniform(1.35, 1.8), rng.uniform(3.4, 4.6)
    paint = tuple(
        rng.uniform(20, 235, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(20, 230))
    )
    canvas.ellipse((x, 0.02, z), (width * 0.62, 0.18), (25, 25, 25), None)
    toward = x - np.sign(x) * width / 2
    far = z + length
    body = height * 0.62
    flank = [(toward, 0.25, z), (toward, 0.25, far), (toward, body, far), (toward, body, z)]
    canvas.fill(flank, _shade(paint, 0.7), CAR)
    roof = [(toward, body, z), (toward, body, far - 0.7), (toward, height, far - 1.3)]
    canvas.fill([*roof, (toward, height, z)], (45, 50, 58), CAR)
    for start in (z + 0.5, far - 1.2):
        canvas.ellipse((toward, 0.3, start + 0.3), (0.18, 0.3), (20, 20, 20), CAR)
    canvas.upright(x, z, (width, body - 0.25), 0.25, paint, CAR)
    half = width * 0.42
    cabin = [(x - width / 2, body, z), (x + width / 2, body, z), (x + half, height, z)]
    canvas.fill([*cabin, (x - half, height, z)], paint, CAR)
    glass = [(x - half, body + 0.05, z), (x + half, body + 0.05, z)]
    top = height - 0.12
    glass += [(x + half * 0.86, top, z), (x - half * 0.86, top, z)]
    canvas.fill(glass, (55, 62, 72), CAR)
    lamp = (200, 30, 30) if rng.random() < 0.6 else (240, 240, 215)
    for offset in (-0.38, 0.38):
        canvas.upright(x + offset * width, z, (0.26, 0.14), body - 0.3, lamp, CAR)
        canvas.upright(x + offset * width, z, (0.24, 0.3), 0.0, (20, 20, 20), CAR)


def _draw_person(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    tall = rng.uniform(1.5, 1.95)
    shirt, trousers = rng.uniform(20, 230, 3), rng.uniform(20, 120, 3)
    stride = rng.uniform(0.05, 0.22)
    for foot in (-stride, stride):
        hip = tall * 0.48
        leg = [(x + foot - 0.07, 0, z), (x + foot + 0.07, 0, z), (x + 0.1, hip, z)]
        canvas.fill([*leg, (x - 0.1, hip, z)], tuple(trousers), PERSON)
    canvas.upright(x, z, (0.42, tall * 0.38), tall * 0.46, tuple(shirt), PERSON)
    skin = _shade((225, 180, 150), rng.uniform(0.45, 1.05))
    canvas.ellipse((x, tall * 0.92, z), (0.1, 0.13), skin, PERSON)


def _beyond_the_sidewalk(rng: np.random.Generator, side: int, edge: float) -> Iterator[Thing]:
    """Buildings, and trees in the gaps."""
    z = rng.uniform(-12, 4)
    while z < FAR:
        length = rng.uniform(7, 20)
        if rng.random() < 0.78:
            yield max(z, 1.0), _draw_building, (side, edge, max(z, 1.0), length)
        else:
            for spot in np.arange(max(z, NEAR), z + length, 3.5):
                yield spot, _draw_tree, (edge + side * rng.uniform(1, 5), spot)
        z += length + (rng.uniform(0, 5) if rng.random() < 0.3 else 0.0)


def _on_the_street(
    rng: np.random.Generator, side: int, half_road: float, width: float
) -> Iterator[Thing]:
    """Trees, poles and people on a sidewalk; cars on the road beside it."""
    for spot in np.arange(rng.uniform(4, 12), 70, rng.uniform(8, 16)):
        draw = _draw_tree if rng.random() < 0.35 else _draw_pole
        yield spot, draw, (side * (half_road + 0.5), spot)
    for _ in range(rng.integers(0, 6)):
        spot = rng.uniform(4, 45)
        place = side * (half_road + rng.uniform(0.4, max(0.6, width - 0.3)))
        yield spot, _draw_person, (place, spot)
    spot = rng.uniform(5, 20)
    while spot < 80 and rng.random() < 0.85:
        parked = rng.random() < 0.5
        yield spot, _draw_car, (side * (half_road - 1.0 if parked else half_road / 2), spot)
        spot += rng.uniform(6, 22)
    if rng.random() < 0.13:
        spot = rng.uniform(8, 30)
        yield spot, _draw_person, (side * rng.uniform(0, half_road), spot)


def _place_things(canvas: Canvas, half_road: float, sidewalk: tuple[float, float]) -> None:
    """Everything that stands on the ground, from far to near.

    What is beyond the sidewalks never hides what is on them: it comes first.
    """
    sides = list(zip((-1, 1), sidewalk, strict=True))
    behind = [t for s, w in sides for t in _beyond_the_sidewalk(canvas.rng, s, s * (half_road + w))]
    street = [t for s, w in sides for t in _on_the_street(canvas.rng, s, half_road, w)]
    for group in (behind, street):
        for _, draw, arguments in sorted(group, key=lambda thing: -thing[0]):
            draw(canvas, *arguments)


def _photograph(canvas: Canvas, settings: Settings) -> np.ndarray:
    """Texture, haze, light, vignette, blur and noise; (H, W, 3), uint8, RGB."""
    rng = canvas.rng
    image = canvas.image + rng.normal(0, 7, canvas.labels.shape).astype(np.float32)[..., None]
    size = (settings.width, settings.height)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    coarse = rng.normal(0, 6, (settings.height // 8, settings.width // 8)).astype(np.float32)
    image += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)[..., None]
    light = rng.uniform(0.55, 1.15) * (1 + rng.uniform(-0.06, 0.06, 3))
    rows = np.abs(np.linspace(-1, 1, settings.height))[:, None]
    columns = np.abs(np.linspace(-1, 1, settings.width))[None]
    vignette = 1 - rng.uniform(0, 0.18) * (rows**2 + columns**2) / 2
    image = image * light.astype(np.float32) * vignette[..., None].astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    image += rng.normal(0, rng.uniform(1, 5), image.shape)
    return image.clip(0, 255).round().astype(np.uint8)


def render_scene(settings: Settings, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene.

    Args:
        settings: Size and seed.
        split: ``train`` or ``val``: no scene is in both.
        index: Number of the scene.

    Returns:
        Image (H, W, 3), uint8, RGB, and labels of Cityscapes (H, W), uint8.
    """
    rng = np.random.default_rng([settings.seed, ("train", "val").index(split), index])
    canvas = Canvas(settings, rng)
    half_road = rng.uniform(3.2, 5.0)
    sidewalk = (rng.uniform(1.5, 3.5), rng.uniform(1.5, 3.5))
    _draw_sky(canvas)
    _draw_ground(canvas, half_road, sidewalk)
    _place_things(canvas, half_road, sidewalk)
    return _photograph(canvas, settings), canvas.labels[::OVERSAMPLING, ::OVERSAMPLING].copy()


def _write(folder: Path, settings: Settings) -> None:
    counts = {"train": settings.num_train, "val": settings.num_val}
    scenes = [(split, index) for split, count in counts.items() for index in range(count)]
    for split, index in tqdm(scenes, desc="street scenes", unit="image", disable=None):
        image, labels = render_scene(settings, split, index)
        stem = f"{CITY}_{index:06d}_000019"
        for kind, suffix, pixels in (
            ("leftImg8bit", IMAGE_SUFFIX, cv2.cvtColor(image, cv2.COLOR_RGB2BGR)),
            ("gtFine", TARGET_SUFFIX, labels),
        ):
            path = folder / kind / split / CITY / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), pixels):
                raise OSError(f"Can't write '{path}'. Is the disk full?")
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)), encoding="utf-8")


def make_street_scenes(
    output: Path = DEFAULT_OUTPUT,
    settings: Settings = Settings(),
) -> Path:
    """Write the scenes, or keep those that were made with the same settings.

    Args:
        output: Folder that will hold ``leftImg8bit`` and ``gtFine``.
        settings: How many, how large, which.

    Returns:
        The folder.

    Raises:
        ValueError: `output` holds something that this script did not make, or nothing is to be
            rendered.
    """
    if min(settings.num_train, settings.num_val) < 1 or min(settings.width, settings.height) < 16:
        raise ValueError(
            f"Nothing to render: {settings}. Ask for at least one image of each split, of at least "
            f"16x16 pixels."
        )
    made_with = output / SETTINGS_FILE
    if made_with.is_file() and json.loads(made_with.read_text(encoding="utf-8")) == asdict(
        settings
    ):
        logger.info("%s is complete: nothing to do", output)
        return output
    if output.exists() and not made_with.is_file() and any(output.iterdir()):
        raise ValueError(
            f"'{output}' holds files that this script did not make. Pass another --output."
        )
    write_folder(output, lambda folder: _write(folder, settings))
    logger.info(
        "wrote %d + %d synthetic street scenes to %s", settings.num_train, settings.num_val, output
    )
    return output


def main() -> None:
    """Parse the command line and render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        make_street_scenes(output, Settings(**arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
