"""Cache the embeddings of one run, so that several detectors embed an image only once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LIMIT = 1 << 28  # bytes of cached embeddings: a quarter of a gigabyte
Digest = bytes


class EmbeddingCache:
    """Cache embeddings float32 D by the content of encoder and image.

    A full cache first drops the encoder that was not used for longest. The key is a digest of all weights and all
    pixels, so an encoder that was trained further, or an image that was changed in place, never gets an outdated
    embedding.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._rows: OrderedDict[Digest, dict[Digest, Tensor]] = OrderedDict()
        self._bytes = 0

    def embed(self, encoder: Digest, images: Sequence[Digest], embed_rows: Callable[[list[int]], Tensor]) -> Tensor:
        """Return the embeddings of images N by an encoder, both given by digest, on the device of `embed_rows`.

        embed_rows embeds the images with the given row numbers, float32 n,D. It is called at most once, with each
        unknown image once.
        """
        rows = self._rows.setdefault(encoder, {})
        self._rows.move_to_end(encoder)
        first = {digest: row for row, digest in reversed(list(enumerate(images))) if digest not in rows}
        unknown = sorted(first.values())
        if unknown:
            feats = embed_rows(unknown)
            rows |= {images[row]: feat for row, feat in zip(unknown, feats, strict=True)}
            self._bytes += feats.nbytes
        together = torch.stack([rows[digest] for digest in images])
        self._shrink()
        return together

    def _shrink(self) -> None:
        while self._bytes > self.limit and self._rows:
            _, rows = self._rows.popitem(last=False)
            self._bytes -= sum(feat.nbytes for feat in rows.values())


def digest_of(net: nn.Module) -> Digest:
    """Return the SHA-256 of all that a network computes with: its modules and settings, its weights and its buffers.

    Buffers that no file stores count as well, because the mean and deviation of an encoder's input are such buffers.
    """
    content = hashlib.sha256(f"{net} {getattr(net, 'arch', '')}".encode())
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.digest()
