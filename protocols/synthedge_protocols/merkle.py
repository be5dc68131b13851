"""Merkle trees of RFC 6962: hashes, frontiers that grow, proofs and their verification.

A tree over n leaves is determined by its *frontier*: the roots of the complete subtrees that n's binary digits name,
largest first. Appending touches nothing else, so a log of any length grows in constant memory. Proofs are made from
the roots of complete subtrees, which a log keeps (see `event_log`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synthedge_protocols.errors import VerificationError

__all__ = [
    "EMPTY_FRONTIER",
    "Frontier",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

Subtree = Callable[[int, int], bytes]
"""Root of the complete subtree of 2**level leaves that ends before leaf `end`: ``subtree(level, end)``."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf, 32 bytes (RFC 6962, 2.1: SHA-256 behind the byte 0)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node, 32 bytes (RFC 6962, 2.1: SHA-256 behind the byte 1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """A tree, as far as growing it and naming its root need it.

    Attributes
    ----------
    size : int
        Leaves in the tree.
    roots : tuple of bytes
        One for every binary digit 1 of `size`, largest subtree first.
    """

    size: int
    roots: tuple[bytes, ...]

    def append(self, leaf: bytes) -> tuple["Frontier", tuple[bytes, ...]]:
        """Add a leaf.

        Parameters
        ----------
        leaf : bytes of length 32
            From `leaf_hash`.

        Returns
        -------
        Frontier
            Of the larger tree.
        tuple of bytes
            Roots of the complete subtrees that this leaf completed, by level; the first is the leaf itself.
        """
        completed = [leaf]
        roots = list(self.roots)
        size = self.size
        while size & 1:
            completed.append(node_hash(roots.pop(), completed[-1]))
            size >>= 1
        return Frontier(self.size + 1, (*roots, completed[-1])), tuple(completed)

    @property
    def root(self) -> bytes:
        """Root of the tree, 32 bytes; SHA-256 of nothing for an empty one."""
        if not self.roots:
            return hashlib.sha256().digest()
        root = self.roots[-1]
        for left in reversed(self.roots[:-1]):
            root = node_hash(left, root)
        return root


EMPTY_FRONTIER = Frontier(0, ())


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Prove that a leaf is in a tree: RFC 6962, 2.1.1, ``PATH(index, D[size])``.

    Parameters
    ----------
    index : int
        The leaf, from 0; below `size`.
    size : int
        Leaves in the tree.
    subtree : callable
        ``subtree(level, end)``, for complete subtrees within the tree.
    """
    return _path(index, 0, size, subtree)


def consistency_proof(old_size: int, size: int, subtree: Subtree) -> list[bytes]:
    """Prove that a tree begins with all leaves of an older one: RFC 6962, 2.1.2, ``PROOF(old_size, D[size])``.

    Parameters
    ----------
    old_size, size : int
        ``0 <= old_size <= size``. From an empty tree, and to the same one, the proof is empty.
    subtree : callable
        As for `inclusion_proof`.
    """
    if old_size in (0, size):
        return []
    return _subproof(old_size, 0, size, True, subtree)


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Return if the proof shows `leaf` at `index` of the tree (RFC 9162, 2.1.3.2).

    Raises
    ------
    VerificationError
        If it does not.
    """
    if not 0 <= index < size:
        raise VerificationError(f"entry {index} cannot be in a log of {size} entries")
    number, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise VerificationError("the inclusion proof is longer than the tree is high")
        if number & 1 or number == last:
            computed = node_hash(sibling, computed)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        number, last = number >> 1, last >> 1
    if last != 0 or computed != root:
        raise VerificationError(f"entry {index} is not in the log of {size} entries as signed")


def verify_consistency(
    old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """Return if the proof shows that the tree extends the older one (RFC 9162, 2.1.4.2).

    Raises
    ------
    VerificationError
        If it does not: the older tree was rewritten, or the proof is of another.
    """
    wrong = VerificationError(
        f"the log of {size} entries does not begin with the log of {old_size} entries seen before"
    )
    if old_size > size or (old_size == size and old_root != root):
        raise wrong
    if old_size in (0, size):
        if proof:
            raise wrong
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)  # a complete tree is its own first subtree
    if not path:
        raise wrong
    number, last = old_size - 1, size - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    of_old = of_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise wrong
        if number & 1 or number == last:
            of_old, of_new = node_hash(sibling, of_old), node_hash(sibling, of_new)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            of_new = node_hash(of_new, sibling)
        number, last = number >> 1, last >> 1
    if last != 0 or of_old != old_root or of_new != root:
        raise wrong


def _split(n_leaves: int) -> int:
    """The largest power of two below `n_leaves`."""
    return 1 << ((n_leaves - 1).bit_length() - 1)


def _root(start: int, end: int, subtree: Subtree) -> bytes:
    n_leaves = end - start
    if n_leaves & (n_leaves - 1) == 0:
        return subtree(n_leaves.bit_length() - 1, end)
    middle = start + _split(n_leaves)
    return node_hash(_root(start, middle, subtree), _root(middle, end, subtree))


def _path(index: int, start: int, end: int, subtree: Subtree) -> list[bytes]:
    if end - start == 1:
        return []
    middle = start + _split(end - start)
    if index < middle:
        return [*_path(index, start, middle, subtree), _root(middle, end, subtree)]
    return [*_path(index, middle, end, subtree), _root(start, middle, subtree)]


def _subproof(old_end: int, start: int, end: int, is_whole: bool, subtree: Subtree) -> list[bytes]:
    if old_end == end:
        return [] if is_whole else [_root(start, end, subtree)]
    middle = start + _split(end - start)
    if old_end <= middle:
        return [
            *_subproof(old_end, start, middle, is_whole, subtree),
            _root(middle, end, subtree),
        ]
    return [
        *_subproof(old_end, middle, end, False, subtree),
        _root(start, middle, subtree),
    ]
