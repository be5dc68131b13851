"""The tree of the audit log: RFC 6962's vectors, a second implementation, and proofs that cannot be bent."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.errors import VerificationError
from synthedge_protocols.merkle import (
    EMPTY_FRONTIER,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

# The reference test data of Certificate Transparency's own implementations.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def root_by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, word for word: the second implementation."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(
        b"\x01" + root_by_definition(leaves[:k]) + root_by_definition(leaves[k:])
    ).digest()


class Tree:
    """Leaves, and the roots of complete subtrees as a log keeps them."""

    def __init__(self, n_leaves: int) -> None:
        self.leaves = [bytes([i % 256, i // 256]) for i in range(n_leaves)]
        self.frontier = EMPTY_FRONTIER
        self.completed: list[tuple[bytes, ...]] = []
        for leaf in self.leaves:
            self.frontier, completed = self.frontier.append(leaf_hash(leaf))
            self.completed.append(completed)

    def subtree(self, level: int, end: int) -> bytes:
        return self.completed[end - 1][level]


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_the_roots_are_those_of_the_reference_data(size: int) -> None:
    frontier = EMPTY_FRONTIER
    for leaf in LEAVES[:size]:
        frontier, _ = frontier.append(leaf_hash(leaf))
    assert frontier.root.hex() == ROOTS[size]


@given(st.integers(0, 300))
def test_a_grown_tree_has_the_root_of_the_definition(n_leaves: int) -> None:
    tree = Tree(n_leaves)
    assert tree.frontier.root == root_by_definition(tree.leaves)


@given(st.data())
def test_every_entry_can_be_proved_to_be_in_the_log_and_no_other(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 200))
    index = data.draw(st.integers(0, size - 1))
    tree = Tree(size)
    leaf, root = leaf_hash(tree.leaves[index]), tree.frontier.root
    proof = inclusion_proof(index, size, tree.subtree)
    verify_inclusion(leaf, index, size, proof, root)
    with pytest.raises(VerificationError):
        verify_inclusion(leaf_hash(b"another"), index, size, proof, root)
    with pytest.raises(VerificationError):
        verify_inclusion(leaf, index, size, [*proof, bytes(32)], root)
    other = data.draw(
        st.integers(0, size - 1).filter(lambda i: i != index) if size > 1 else st.just(size)
    )
    with pytest.raises(VerificationError):
        verify_inclusion(leaf, other, size, proof, root)


@given(st.data())
def test_a_log_that_only_grew_can_prove_it_and_a_rewritten_one_cannot(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 200))
    old_size = data.draw(st.integers(0, size))
    tree, old = Tree(size), Tree(old_size)
    proof = consistency_proof(old_size, size, tree.subtree)
    verify_consistency(old_size, old.frontier.root, size, tree.frontier.root, proof)
    if old_size:
        rewritten = bytes(32)
        with pytest.raises(VerificationError):
            verify_consistency(old_size, rewritten, size, tree.frontier.root, proof)
        with pytest.raises(VerificationError):
            verify_consistency(old_size, old.frontier.root, size, rewritten, proof)
    if proof:
        i = data.draw(st.integers(0, len(proof) - 1))
        bent = [*proof[:i], bytes(32), *proof[i + 1 :]]
        for wrong in (bent, proof[:-1], [*proof, bytes(32)]):
            with pytest.raises(VerificationError):
                verify_consistency(old_size, old.frontier.root, size, tree.frontier.root, wrong)


def test_a_log_cannot_shrink() -> None:
    tree = Tree(5)
    with pytest.raises(VerificationError, match="does not begin with"):
        verify_consistency(5, tree.frontier.root, 4, Tree(4).frontier.root, [])
