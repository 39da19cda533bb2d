"""Chemical reactions as SMILES: tokens, and which atom of the products is which of the reactants.

A reaction is written `reactants>>products`. In one that is mapped, atoms carry numbers, as in `[CH3:1]`; the same
number on both sides is the same atom.
"""

import json
import re
import zipfile
from typing import Any, NamedTuple

import numpy as np

from jattn import models
from jattn.models.bert import Bert

from . import torch_files

FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
LAYER, HEAD = 10, 5
"""The head that the authors of rxnmapper chose, counted from 0 (Schwaller et al. 2021, doi:10.1126/sciadv.abe4166)."""

TOKEN = re.compile(
    r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9]"
)
MAPPED = re.compile(r"\[([^\]:]+):([0-9]+)\]")
ORGANIC = re.compile(r"(Br|Cl|B|C|N|O|P|S|F|I|b|c|n|o|p|s)H?[0-9]*")


class Reaction(NamedTuple):
    """A reaction as tokens.

    Attributes:
        tokens: strings, with `[CLS]` and `[SEP]` around them.
        reactants, products: where the atoms of each side are.
        truth: of each atom of the products, where it is among the reactants; -1 if the map does not say.
    """

    tokens: list[str]
    reactants: np.ndarray
    products: np.ndarray
    truth: np.ndarray


def read(smiles: str) -> Reaction:
    """The tokens of a reaction, mapped or not.

    Raises:
        ValueError: there are no atoms before and behind `>>`.

    >>> reaction = read("[CH3:1][OH:2].[Na+]>>[O:2]=[CH2:1]")
    >>> reaction.tokens
    ['[CLS]', 'C', 'O', '.', '[Na+]', '>>', 'O', '=', 'C', '[SEP]']
    >>> reaction.products, reaction.truth
    (array([6, 8]), array([2, 1]))
    """
    tokens, numbers = ["[CLS]"], [0]
    for token in TOKEN.findall(smiles.split(" |")[0]):
        found = MAPPED.fullmatch(token)
        numbers.append(int(found[2]) if found else 0)
        tokens.append(_plain(found[1]) if found else token)
    tokens.append("[SEP]")
    if tokens.count(">>") != 1:
        raise ValueError(f"a reaction must be SMILES as in 'CCO>>CC=O', reactants>>products; got {smiles!r}")
    arrow = tokens.index(">>")
    atoms = [i for i, token in enumerate(tokens) if i not in (0, len(tokens) - 1) and re.match(r"[A-Za-z\[]", token)]
    reactants = np.array([i for i in atoms if i < arrow])
    products = np.array([i for i in atoms if i > arrow])
    if not len(reactants) or not len(products):
        raise ValueError(f"a reaction must have atoms before and behind '>>', as in 'CCO>>CC=O'; got {smiles!r}")
    places = {numbers[i]: i for i in reactants if numbers[i]}
    truth = np.array([places.get(numbers[i], -1) if i < len(numbers) else -1 for i in products])
    return Reaction(tokens, reactants, products, truth)


def _plain(atom: str) -> str:
    """An atom without its number, and without the brackets and hydrogens that SMILES implies."""
    found = ORGANIC.fullmatch(atom)
    return found[1] if found and not atom.startswith("nH") else f"[{atom}]"


def symmetry(tokens: list[str]) -> np.ndarray:
    """Numbers that are equal for atoms that nothing tells apart, such as the two methyls of isopropyl; 0 for no atom.

    Atoms begin with what they are, and are told apart by the multiset of their bonds and neighbors until nothing
    changes (Morgan 1965, doi:10.1021/c160017a018). Stereochemistry is left out.

    >>> symmetry(["C", "C", "(", "C", ")", "S"]).tolist()
    [1, 2, 0, 1, 0, 3]
    """
    bonds: dict[int, list[tuple[str, int]]] = {}
    branches, rings = [], {}
    last, bond = None, ""
    for i, token in enumerate(tokens):
        if re.match(r"[A-Za-z\[]", token) and token not in ("[CLS]", "[SEP]"):
            bonds[i] = []
            if last is not None:
                bonds[i].append((bond, last))
                bonds[last].append((bond, i))
            last, bond = i, ""
        elif token == "(":
            branches.append(last)
        elif token == ")":
            last = branches.pop()
        elif token in (".", ">>"):
            last = None
        elif token.strip("%").isdigit() and last is not None:
            if token in rings:
                other = rings.pop(token)
                bonds[last].append((bond, other))
                bonds[other].append((bond, last))
            else:
                rings[token] = last
            bond = ""
        else:
            bond = token
    colors = _ranks({i: tokens[i] for i in bonds})
    while True:
        finer = _ranks({i: (colors[i], sorted((kind, colors[j]) for kind, j in bonds[i])) for i in bonds})
        if max(finer.values()) == max(colors.values()):
            return np.array([colors.get(i, 0) for i in range(len(tokens))])
        colors = finer


def _ranks(kinds: dict[int, Any]) -> dict[int, int]:
    """Each kind as a number from 1."""
    numbers = {kind: number for number, kind in enumerate(sorted(set(map(str, kinds.values()))), 1)}
    return {i: numbers[str(kind)] for i, kind in kinds.items()}


def load(wheel: zipfile.ZipFile, **options: Any) -> tuple[Bert, dict[str, int]]:
    """rxnmapper's ALBERT and its vocabulary, from its wheel."""
    tensors = torch_files.read(wheel.read(f"{FOLDER}/pytorch_model.bin"))
    settings = json.loads(wheel.read(f"{FOLDER}/config.json"))
    unused = ["predictions.*"]  # the head that it was trained with
    others = ["down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks", "eos_token_ids"]
    model = models.from_tensors(tensors, settings, Bert, ignore=unused, ignore_settings=others, **options)
    lines = wheel.read(f"{FOLDER}/vocab.txt").decode().splitlines()
    return model, {token: index for index, token in enumerate(lines)}


def encode(reactions: list[Reaction], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and attention mask `[reactions, longest]`, padded on the right."""
    longest = max(len(one.tokens) for one in reactions)
    tokens = np.full((len(reactions), longest), vocabulary["[PAD]"])
    mask = np.zeros((len(reactions), longest), int)
    for row, one in enumerate(reactions):
        tokens[row, : len(one.tokens)] = [vocabulary.get(token, vocabulary["[UNK]"]) for token in one.tokens]
        mask[row, : len(one.tokens)] = 1
    return tokens, mask


def accuracy(weights: np.ndarray, reactions: list[Reaction]) -> np.ndarray:
    """How many atoms of the products each head maps right, by the largest of its weights over the reactants' atoms.

    An atom that nothing tells from the right one is right as well.

    Args:
        weights: `[reactions, heads, queries, keys]`.
        reactions: mapped.

    Returns:
        The share of right atoms, `[heads]`.
    """
    right, total = np.zeros(weights[0].shape[0]), 0
    for one, maps in zip(reactions, weights, strict=True):
        chosen = one.reactants[maps[:, one.products][..., one.reactants].argmax(-1)]
        known = one.truth >= 0
        kinds = symmetry(one.tokens)
        pairs = set(zip(kinds[one.products[known]], kinds[one.truth[known]], strict=True))
        right = right + [
            sum(pair in pairs for pair in zip(kinds[one.products[known]], kinds[row[known]], strict=True))
            for row in chosen
        ]
        total += known.sum()
    return right / total


def shipped(wheel: zipfile.ZipFile) -> list[Reaction]:
    """The mapped reactions among the package's own tests."""
    source = "".join(wheel.read(name).decode() for name in ("tests/test_mapper.py", "tests/test_batched_mapper.py"))
    found = dict.fromkeys(re.findall(r'"([^"\s]+:[0-9]+\][^"\s]*>>[^"\s]*)', source))
    return [read(smiles) for smiles in found]
