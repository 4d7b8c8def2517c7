"""Checkpoints and datasets on the Hugging Face hub: `hf://[datasets/]OWNER/NAME[@REVISION][/FILE]`.

Of a model only weights and JSON files are downloaded, of a dataset only the files that are read, into the hub library's
own cache (HF_HOME). No code of a repository is fetched or run. HF_HUB_OFFLINE and HF_ENDPOINT count as everywhere, and
so does the token of a user who is logged in.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sslbd_cli.errors import InputError
from sslbd_cli.words import did_you_mean, one_line, reason

FORM = "hf://OWNER/NAME[@REVISION][/FILE], such as hf://timm/resnet18.a1_in1k"
_ADDRESS = re.compile(r"hf://([\w.-]{1,96})/([\w.-]{1,96})(?:@(refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(.+))?", re.A)
COMMIT = re.compile("[0-9a-f]{40}")
INDEX = ".index.json"
SAFE, PICKLES = (".safetensors", f".safetensors{INDEX}"), (".bin", f".bin{INDEX}", ".pth", ".pt", ".ckpt", ".pth.tar")
#: Usual names of the weights, safetensors first.
USUAL_SAFE = ("model.safetensors", f"model.safetensors{INDEX}", "open_clip_model.safetensors")
USUAL_PICKLES = ("pytorch_model.bin", f"pytorch_model.bin{INDEX}", "open_clip_pytorch_model.bin")
#: What training leaves beside the weights, and parts of weights that an index joins.
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state).*", re.I)
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")
TOKENISER = "tokenizer.json"  # as the library tokenizers writes it: SigLIP's vocabulary
JSON_LIMIT = 16 << 20  # bytes of a configuration file or an index
MOST_SHARDS = 1000
TIMEOUT = 10  # seconds to wait for the hub's first answer


@dataclass(frozen=True)
class Address:
    """Hold the parts of an address. `revision` is a branch, a tag or a commit; `kind` is model or dataset."""

    repo: str
    revision: str | None = None
    file: str | None = None
    kind: str = "model"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        place = f"{self.place}{revision}"
        return f"hf://{place}" + (f"/{self.file}" if self.file else "")

    @property
    def place(self) -> str:
        """The repository as the hub's pages write it."""
        return f"datasets/{self.repo}" if self.kind == "dataset" else self.repo


@dataclass(frozen=True)
class Listing:
    """Hold what a repository has at one commit: names of files -> SHA-256, where the hub tells it.

    is_cached: the hub could not be asked, and these are the files in the local cache.
    """

    commit: str
    files: dict[str, str | None]
    is_cached: bool = False


@dataclass(frozen=True)
class Download:
    """Hold a downloaded checkpoint: its local path, its full address with the commit, and the configuration files.

    configs: name without folder -> content, for config.json and its kin. tokeniser: the local path of its file, or "".
    """

    path: str
    name: str
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokeniser: str = ""


def is_address(text: str) -> bool:
    """Return whether an input is meant for the hub, well spelt or not."""
    return text.startswith(("hf:", "https://huggingface.co/", "https://hf.co/"))


def parse(text: str) -> Address:
    """Split an address. Raises InputError for another spelling; `%2F` in a revision is a slash."""
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in text or "//" in text[5:] or text.endswith("/"):
        raise InputError(f"{one_line(text, '?')}: expected {FORM}")
    owner, name, revision, file = match.groups()
    if owner in ("datasets", "spaces", "models"):
        raise InputError(f"{text}: '{owner}' is no owner of models; expected {FORM}")
    return Address(f"{owner}/{name}", unquote(revision) if revision else None, file)


def fetch(text: str, configs: Iterable[str], say: Callable[[str], None], bars: bool = False) -> Download:
    """Download a checkpoint and those of the configuration files that its repository has. `bars`: show progress bars.

    Raises InputError if anything about the address, the repository, the network or the files is wrong.
    """
    address = parse(text)
    with _library(bars):
        listing = _listing(address)
        if listing.is_cached:
            say(f"{address}: the hub is not asked; the cache holds commit {listing.commit}")
        file = choose(listing.files, address)
        path = _get(address, listing, file)
        for part in _parts(path, file, listing, address):
            _get(address, listing, part)
        names = {name: f"{folder}{name}" for name in configs for folder in ("", _folder(file))
                 if f"{folder}{name}" in listing.files}  # fmt: skip
        contents = {name: _json(_get(address, listing, place)) for name, place in names.items()}
        tokeniser = _get(address, listing, TOKENISER) if TOKENISER in listing.files else ""
        _remember(address, listing, file)
    full = Address(address.repo, listing.commit, file)
    return Download(path, str(full), {name: content for name, content in contents.items() if content}, tokeniser)


def fetch_files(
    text: str, expand: Callable[[str], list[str]], suffixes: tuple[str, ...], say: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Download files of a dataset repository: (name, local path) of each, in the order of names.

    text: `hf://datasets/OWNER/NAME[@REVISION][/PATTERN]`; the pattern is a file, a folder, or a pattern with * or what
    `expand` expands; without one, all files with these suffixes. Raises InputError as `fetch` does.
    """
    start = "hf://datasets/"
    if not text.startswith(start):
        raise InputError(f"{one_line(text, '?')}: expected {start}OWNER/NAME[@REVISION][/FILE OR PATTERN]")
    place = f"hf://{text[len(start) :].rstrip('/')}"
    match = _ADDRESS.fullmatch(place)
    pattern = match[4] if match else None  # it only chooses among the repository's own names
    address = parse(place if pattern is None else place.removesuffix(f"/{pattern}"))
    address = replace(address, file=pattern, kind="dataset")
    with _library(False):
        listing = _listing(address)
        names = [name for name in sorted(listing.files) if is_plain(name) and name.endswith(suffixes)]
        wanted = _matching(names, address.file, expand)
        if not wanted:
            raise InputError(f"{address}: has no such file; it has {_list(names)}")
        say(f"reading {len(wanted)} of the files of hf://{address.place}@{listing.commit}")
        return [(name, _get(address, listing, name)) for name in wanted]


def _matching(names: list[str], pattern: str | None, expand: Callable[[str], list[str]]) -> list[str]:
    """Return the names that a pattern means: itself, what lies in this folder, or what it matches."""
    if pattern is None:
        return names
    patterns = expand(pattern)
    return [
        name for name in names
        if any(name == one or name.startswith(f"{one}/") or fnmatch.fnmatchcase(name, one) for one in patterns)
    ]  # fmt: skip


def choose(files: Iterable[str], address: Address) -> str:
    """Return the file with the weights: the address's own, or the usual one, safetensors before pickles.

    Raises InputError if there is none, or no usual one among several.
    """
    names = sorted(name for name in files if is_plain(name))
    weights = [name for name in names if name.endswith((*SAFE, *PICKLES)) and not NO_WEIGHTS.fullmatch(_base(name))]
    if address.file is not None:
        return _given(names, weights, address)
    top = [name for name in weights if "/" not in name and not PART.fullmatch(name)]
    for usual, suffixes in ((USUAL_SAFE, SAFE), (USUAL_PICKLES, PICKLES)):
        candidates = [name for name in usual if name in top][:1] or [name for name in top if name.endswith(suffixes)]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise InputError(f"{address}: holds {_list(candidates)}; name one of them: hf://{address.repo}/FILE")
    if weights:
        raise InputError(
            f"{address}: has no usual checkpoint, but {_list(weights)}; name one: hf://{address.repo}/FILE"
        )
    raise InputError(f"{address}: holds no weights in safetensors or of PyTorch (files: {_list(names)}); give another")


def is_plain(name: str) -> bool:
    """Return whether a name from a repository or an index stays inside the repository's folder."""
    return bool(name) and name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _given(names: list[str], weights: list[str], address: Address) -> str:
    """Return the file that the address names. Raises InputError if it is not there or holds no weights."""
    file = str(address.file)
    if file in weights:
        return file
    advice = f"{did_you_mean(file, weights)}its weights are {_list(weights)}" if weights else "it has no weights"
    raise InputError(f"{address}: {'holds no weights' if file in names else 'has no such file'}; {advice}")


def _list(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _folder(name: str) -> str:
    return name[: len(name) - len(_base(name))]


# --- the hub and its cache ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _library(bars: bool) -> Iterator[None]:
    """Silence the hub library, except for progress bars if they are wanted."""
    from huggingface_hub import utils
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled, verbosity = are_progress_bars_disabled(), utils.logging.get_verbosity()
    utils.logging.set_verbosity(logging.ERROR)
    if not bars:
        disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if not were_disabled:
            enable_progress_bars()


def _listing(address: Address) -> Listing:
    """Ask the hub for the commit of a revision and its files. If the hub cannot be reached, look into the cache."""
    from huggingface_hub import HfApi

    try:
        ask = HfApi().dataset_info if address.kind == "dataset" else HfApi().model_info
        info = ask(address.repo, revision=address.revision, timeout=TIMEOUT, files_metadata=True)
    except Exception as error:
        if _is_answer(error):
            raise _refusal(error, address) from None
        cached = _cached(address)
        if cached is None:
            raise _refusal(error, address) from None
        return cached
    if not COMMIT.fullmatch(str(info.sha)) or not info.siblings:
        raise InputError(f"{address}: the repository is empty, or the answer is not the hub's; is HF_ENDPOINT right?")
    files = {sibling.rfilename: getattr(sibling.lfs, "sha256", None) for sibling in info.siblings}
    return Listing(str(info.sha), files)


def _cached(address: Address) -> Listing | None:
    """Return what the cache holds of a revision, or None."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    wanted = address.revision or "main"
    for repo in repos:
        for revision in repo.revisions if (repo.repo_type, repo.repo_id) == (address.kind, address.repo) else ():
            if wanted == revision.commit_hash or wanted in revision.refs:
                paths = (file.file_path.relative_to(revision.snapshot_path) for file in revision.files)
                return Listing(revision.commit_hash, dict.fromkeys(path.as_posix() for path in paths), is_cached=True)
    return None


def _get(address: Address, listing: Listing, file: str) -> str:
    """Download one file of the commit, unless it is in the cache, and check its digest. Return its path."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(address.repo, file, revision=listing.commit, repo_type=address.kind)
    except Exception as error:
        raise _refusal(error, replace(address, file=file)) from None
    expected = listing.files[file]
    if expected is not None and _sha256(path) != expected:
        advice = f"an answer was cut short or changed; delete {Path(path).resolve()} and try again"
        raise InputError(f"{address}: the SHA-256 of {file} is not the one that the hub lists: {advice}")
    return path


def _remember(address: Address, listing: Listing, file: str) -> None:
    """Let the cache note which commit a branch or tag is, so that the same address works without a network."""
    from huggingface_hub import hf_hub_download

    revision = address.revision or "main"
    if not listing.is_cached and revision != listing.commit:
        with contextlib.suppress(Exception):  # the files are there; without the note, only the commit finds them
            hf_hub_download(address.repo, file, revision=revision)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _json(path: str) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file is too large or no JSON object, because it only gives hints."""
    with open(path, "rb") as stream:
        data = stream.read(JSON_LIMIT + 1)
    try:
        content = json.loads(data) if len(data) <= JSON_LIMIT else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _parts(path: str, file: str, listing: Listing, address: Address) -> list[str]:
    """Return the shards that an index joins, or those beside one shard; none for a whole file.

    Raises InputError if an index names no shards, or a shard is not there.
    """
    if file.endswith(INDEX):
        table = _json(path).get("weight_map")
        names = sorted({_folder(file) + str(name) for name in table.values()}) if isinstance(table, dict) else []
        if not names:
            raise InputError(f"{address}: its index names no shards; the index is damaged")
    elif shard := PART.fullmatch(file):
        stem, _, count, suffix = shard.groups()
        if not 1 <= int(shard[2]) <= int(count) <= MOST_SHARDS:
            raise InputError(f"{address}: its name is that of no shard; name another file")
        names = [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    else:
        return []
    absent = [name for name in names if name not in listing.files or not is_plain(name)]
    if absent:
        where = "the cache" if listing.is_cached else "the repository"
        raise InputError(f"{address}: {len(absent)} of {len(names)} shards are not in {where}: {_list(absent)}")
    return names


# --- what went wrong ----------------------------------------------------------------------------------------------


def _is_answer(error: Exception) -> bool:
    """Return whether the hub has answered, and not merely failed to."""
    from huggingface_hub.errors import HfHubHTTPError

    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, HfHubHTTPError) and status is not None and status < 500


def _refusal(error: Exception, address: Address) -> InputError:
    """Return what the hub library's error means, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{address.place}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        what = f"the repository is gated; ask for access at {page}, then log in (hf auth login, or HF_TOKEN)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = (
            f"there is no such {address.kind} repository, or it is private; check the spelling, "
            "or log in as one of its readers (hf auth login, or HF_TOKEN)"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"the repository has no revision '{address.revision}'; give a branch, a tag or a commit of {page}"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        what = f"there is no such file in the repository; see {page}"
    elif status in (401, 403):
        what = f"the hub refuses access ({status}); log in as one of its readers (hf auth login, or HF_TOKEN)"
    elif status == 429:
        what = "the hub has had too many requests from here (429); wait, or log in (hf auth login, or HF_TOKEN)"
    elif isinstance(error, OSError) and "Consistency check failed" in str(error):
        what = "an answer of the hub was cut short; try again"
    elif isinstance(error, OSError) and error.errno is not None:
        what = f"the cache cannot be used ({reason(error)}); set HF_HOME to a folder with room"
    else:
        what = _unreached(error, status)
    return InputError(f"{address}: {what}")


def _unreached(error: Exception, status: int | None) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "is not in the cache (HF_HOME), and HF_HUB_OFFLINE forbids to ask the hub; unset it, or copy a cache"
    why = f"error {status}" if status else reason(error)
    return f"the hub gives no usable answer ({why}), and the cache (HF_HOME) lacks this; check the network, try again"
