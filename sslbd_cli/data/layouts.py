"""Where a folder's images lie: in one folder, in class folders, or in splits of either. Paths alone decide."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.errors import InputError
from sslbd_cli.words import first_names

Parts = tuple[str, ...]
Tree = list[tuple[Parts, Parts]]  # an image's path below the folder that is looked at, and its whole path
IMAGES = "images"  # a folder below each class (Tiny ImageNet), or below a split; it names no class
EXPECTED = "expected NAME, CLASS/NAME, SPLIT/NAME or SPLIT/CLASS/NAME"


@dataclass(frozen=True)
class Arrangement:
    """Hold the images of one split, sorted by class and name, and the sorted classes of all splits.

    labels: each image's class number; None: there are no classes. stray: images beside the class folders or the
    splits, which are left out.
    """

    paths: tuple[Parts, ...]
    classes: Parts = ()
    labels: tuple[int, ...] | None = None
    stray: tuple[Parts, ...] = ()


@dataclass(frozen=True)
class SplitShape:
    """Hold what one split, or a folder without splits, looks like: class folders, or one folder of images."""

    images: Tree
    stray: Tree
    has_classes: bool


def arrange(paths: set[Parts], split: str | None) -> Arrangement:
    """Find the layout. With `split`, that split alone is judged; the other splits only add their class names.

    Raises InputError for a mixed or unknown layout, and for a split that is missing, unknown or not possible.
    """
    if not paths:
        raise InputError(f"no images here; {EXPECTED}")
    levels = _levels([(parts, parts) for parts in sorted(paths)])
    tree, siblings, stray = _without_split(levels) if split is None else _of_split(levels, split)
    fit = _fit(tree)
    if fit is None:
        raise InputError(_puzzle(tree))
    stray = [*stray, *fit.stray]
    if not fit.has_classes:
        return Arrangement(tuple(whole for _, whole in sorted(fit.images)), stray=_wholes(stray))
    fits = [fit, *filter(None, map(_fit, siblings))]
    classes = tuple(sorted({parts[0] for each in fits if each.has_classes for parts, _ in each.images}))
    index = {name: number for number, name in enumerate(classes)}
    rows = sorted(fit.images)
    labels = tuple(index[parts[0]] for parts, _ in rows)
    return Arrangement(_wholes(rows), classes, labels, _wholes(stray))


def _wholes(tree: Tree) -> tuple[Parts, ...]:
    return tuple(whole for _, whole in tree)


def _levels(tree: Tree) -> list[Tree]:
    """Return the tree, and what lies in its only folder, twice: all may lie in one more folder, and in one split."""
    levels = [tree]
    while len(levels) < 3 and len(folders := _folders(levels[-1])) == 1:
        levels.extend(folders.values())
    return levels


def _folders(tree: Tree) -> dict[str, Tree]:
    """Return what lies in each folder of the tree."""
    folders: dict[str, Tree] = {}
    for parts, whole in tree:
        if len(parts) > 1:
            folders.setdefault(parts[0], []).append((parts[1:], whole))
    return folders


def _loose(tree: Tree) -> Tree:
    """Return the images that lie in no folder."""
    return [row for row in tree if len(row[0]) == 1]


def _fit(tree: Tree) -> SplitShape | None:
    """Return what a folder without splits looks like, or None. Images beside class folders are stray, if they are few.

    A folder `images` above every image names no class.
    """
    deep = [row for row in tree if len(row[0]) > 1]
    if deep and all(parts[-2] == IMAGES for parts, _ in deep):
        tree = [((*parts[:-2], parts[-1]), whole) if len(parts) > 1 else (parts, whole) for parts, whole in tree]
    loose, rest = _loose(tree), [row for row in tree if len(row[0]) > 1]
    if not rest:
        return SplitShape(loose, [], has_classes=False)
    if any(len(parts) != 2 for parts, _ in rest) or len(loose) > len(rest):
        return None
    return SplitShape(rest, loose, has_classes=True)


def _without_split(levels: list[Tree]) -> tuple[Tree, list[Tree], Tree]:
    """Return the first level that needs no split, and the stray images above it.

    Raises InputError, which lists the splits, if there are several.
    """
    stray: Tree = []
    for level in levels:
        fit = _fit(level)
        if fit is not None and len(stray) <= len(fit.images):
            return level, [], stray
        stray += _loose(level)
    folders = _folders(levels[-1])
    splits = _splits(folders)
    if len(splits) < 2 or len(splits) < len(folders):
        raise InputError(_puzzle(levels[0]))
    raise InputError(f"choose one of its splits with --split: {first_names(splits, 20)}")


def _of_split(levels: list[Tree], split: str) -> tuple[Tree, list[Tree], Tree]:
    """Return the images below a split, those below the other splits, and no stray ones. Raises InputError if absent."""
    for level in levels[:2]:
        folders = _folders(level)
        if tree := folders.pop(split, None):
            return tree, list(folders.values()), []
    fit = _fit(levels[0])
    if fit is not None:
        layout = "CLASS/NAME" if fit.has_classes else "NAME"
        raise InputError(f"--split {split}: there are no splits here, the layout is {layout}; leave --split out")
    splits = next((names for level in levels[:2] if (names := _splits(_folders(level)))), [])
    raise InputError(f"no split '{split}'; it has {first_names(splits, 20)}" if splits else _puzzle(levels[0]))


def _splits(folders: dict[str, Tree]) -> list[str]:
    """Return the names of the folders that could be splits."""
    return sorted(name for name, tree in folders.items() if _fit(tree) is not None)


def _puzzle(tree: Tree) -> str:
    """Say that the layout cannot be told, with the shallowest and the deepest path."""
    shallow, deep = (min(tree, key=lambda row: (sign * len(row[1]), row[1]))[1] for sign in (1, -1))
    examples = " and ".join(dict.fromkeys(("/".join(shallow), "/".join(deep))))
    return f"cannot tell the layout from {examples}: {EXPECTED}"
