"""Download files once and check their hashes."""

import hashlib
import re
import urllib.error
import urllib.parse
from pathlib import Path

import torch

__all__ = ["download_once"]

# As torchvision's checkpoints are named: resnet50-0676ba61.pth
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def download_once(url: str, cache_dir: str | Path | None = None) -> Path:
    """Fetch a file, unless the cache already holds it intact.

    A name such as ``resnet50-0676ba61.pth`` carries the first digits of the file's SHA-256; it is
    checked after the download and again whenever the file is taken from the cache. The file is
    written beside its place and renamed, so an interrupted download leaves nothing behind.

    Args:
        url: http(s) address of the file.
        cache_dir: Folder of the cache; None: that of ``torch.hub``, which torchvision shares.

    Returns:
        Path of the file.

    Raises:
        ValueError: The address has no file name, or the file does not match the hash in its name.
        ConnectionError: The file cannot be fetched.
    """
    folder = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urllib.parse.urlparse(url).path).name
    if not name:
        raise ValueError(f"{url!r} names no file; give the address of a checkpoint file.")
    match = _HASH_IN_NAME.search(name)
    digest = match.group(1) if match else None
    path = folder / name
    if path.is_file() and (digest is None or _sha256(path).startswith(digest)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (urllib.error.URLError, OSError) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}). Fetch it where there is a network, and give "
            f"its path, or put it into {folder}."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{url} is damaged: its SHA-256 does not begin with {digest}, the hash in its name "
            f"({error}). Download it again, or ask where it was published."
        ) from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
