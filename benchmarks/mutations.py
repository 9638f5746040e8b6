"""Damage for the two files of a saved model: what disks, transfers, editors and people who mean ill do to them."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any


@dataclass(frozen=True)
class Files:
    """The content of config.json and model.safetensors."""

    config: bytes
    weights: bytes


Mutation = Callable[[Files, Random], Files]
HOLE = "here goes something that json.dumps could not write"
BOMB = b'{"kind": "mixture", "children": [{"kind": "vae"}, '
"""The start of a mixture; repeated, a tree of any depth."""

# --- bytes ----------------------------------------------------------------------------------------------------------


def damaged(content: bytes, random: Random) -> bytes:
    """Flip, overwrite, cut, insert, delete, repeat or swap bytes in one place."""
    a, b = sorted(random.sample(range(len(content) + 1), 2))
    few = slice(a, min(len(content), a + random.randint(1, 16)))
    noise = random.randbytes(random.choice((1, 2, 8, 64)))
    match random.randrange(7):
        case 0:
            at = random.randrange(len(content))
            return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
        case 1:
            return content[:a] + noise[: len(content) - a] + content[a + len(noise) :]
        case 2:
            return content[:a]
        case 3:
            return content[:a] + noise + content[a:]
        case 4:
            return content[: few.start] + content[few.stop :]
        case 5:
            return content[:a] + content[few] * random.choice((2, 1000)) + content[a:]
        case _:
            return content[:a] + content[b:] + content[a:b]


def config_bytes(files: Files, random: Random) -> Files:
    """Damage config.json."""
    return replace(files, config=damaged(files.config, random))


def weights_bytes(files: Files, random: Random) -> Files:
    """Damage model.safetensors, anywhere."""
    return replace(files, weights=damaged(files.weights, random))


def weights_header_bytes(files: Files, random: Random) -> Files:
    """Damage the header of model.safetensors; its length is not put right."""
    end = 8 + struct.unpack("<Q", files.weights[:8])[0]
    return replace(files, weights=damaged(files.weights[:end], random) + files.weights[end:])


def weights_bits(files: Files, random: Random) -> Files:
    """Flip bits of the weights themselves, which leaves a file that safetensors finds nothing wrong with."""
    content = bytearray(files.weights)
    start = 8 + struct.unpack("<Q", files.weights[:8])[0]
    for _ in range(random.choice((1, 1, 2, 100))):
        content[random.randrange(start, len(content))] ^= 1 << random.randrange(8)
    return replace(files, weights=bytes(content))


# --- fields ---------------------------------------------------------------------------------------------------------


def hostile(random: Random, like: Any) -> Any:
    """A value that no writer of ours would put in the place of `like`."""
    numbers = [-1, 0, 1, 2, 2**31, 10**12, 2**63, 10**30, 1.5, 1e308, float("inf"), float("nan"), True]
    others = ["", "x", "\ud800", "\0", "../../config.json", "__import__('os').abort()", "x" * 100_000, None, HOLE]
    nested = [
        [],
        {},
        [like],
        {"kind": like},
        [like, like],
        [0] * 10_000,
        {"kind": "vae"},
        {"__reduce__": ["os.abort", []]},
    ]
    return random.choice(random.choice((numbers, others, nested)))


def edit(document: Any, random: Random) -> None:
    """Swap, drop, rename or replace one field of a JSON document, in place."""
    places: list[tuple[Any, Any]] = []
    stack = [document]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places.extend((node, key) for key in keys)
        stack.extend(node[key] for key in keys if isinstance(node[key], dict | list))
    node, key = random.choice(places)
    match random.randrange(5):
        case 0:
            other, place = random.choice(places)
            node[key], other[place] = other[place], node[key]
        case 1:
            del node[key]
        case 2 if isinstance(node, dict):
            node[random.choice((key.upper(), f"{key} ", "kind", "children", "__class__"))] = node.pop(key)
        case _:
            node[key] = hostile(random, node[key])


def written(document: Any, random: Random) -> bytes:
    """The document as JSON, with something endless where `hostile` left a hole."""
    endless = random.choice((b"[" * 100_000, b"[" * 300 + b"]" * 300, b'{"a":' * 100_000, b"9" * 5_000, b"1e999"))
    try:
        text = json.dumps(document)
    except (ValueError, RecursionError):  # two fields swapped, of which one holds the other
        text = "[" * 100_000
    return text.encode().replace(json.dumps(HOLE).encode(), endless)


def config_fields(files: Files, random: Random) -> Files:
    """Edit up to three fields of config.json."""
    config = json.loads(files.config)
    for _ in range(random.choice((1, 1, 2, 3))):
        edit(config, random)
    return replace(files, config=written(config, random))


def config_bomb(files: Files, random: Random) -> Files:
    """Ask for a tree that is too deep, too wide or too large to be made."""
    config = json.loads(files.config)
    tree = config["tree"]
    text = json.dumps(tree).encode()
    match random.randrange(4):
        case 0:
            depth = random.choice((62, 63, 64, 70, 100, 1_000, 100_000))
            text = BOMB * depth + text + b"]}" * depth
        case 1:
            text = b'{"kind": "mixture", "children": [' + b", ".join([text] * random.choice((2, 100, 1_000))) + b"]}"
        case 2:
            leaf = {"kind": "vae", "latent_dim": random.choice((10**6, 10**9, 10**12, 10**15, 2**63, 10**40))}
            text = json.dumps(leaf if random.random() < 0.5 else {**tree, "children": [leaf, leaf]}).encode()
        case _:
            width = random.choice((10**6, 10**9, 10**12, 2**62, 10**40))
            wide = random.choice(([width], [width, width], [1] * 1_000))
            text = json.dumps({**tree, "gate": {"kind": "mlp", "hidden": wide}}).encode()
    config["tree"] = HOLE
    if random.random() < 0.2:
        config["input_shape"] = random.choice(([2**40, 2**40], [10**12], [1] * 100_000, [2**62]))
    return replace(files, config=json.dumps(config).encode().replace(json.dumps(HOLE).encode(), text))


def weights_fields(files: Files, random: Random) -> Files:
    """Edit up to three fields of the header of model.safetensors; its length is put right."""
    header, data = header_and_data(files)
    for _ in range(random.choice((1, 1, 2, 3))):
        edit(header, random)
    return replace(files, weights=with_length(written(header, random), data))


def weights_swaps(files: Files, random: Random) -> Files:
    """Change which tensor is which, and what it is, in ways that safetensors may find nothing wrong with."""
    header, data = header_and_data(files)
    names = [name for name in header if name != "__metadata__"]
    a, b = random.sample(names, 2)
    match random.randrange(5):
        case 0:
            header[a], header[b] = header[b], header[a]
        case 1:
            header[a]["dtype"] = random.choice(("I32", "U32", "F16", "BF16", "F64", "BOOL", "F8_E4M3", "C64"))
        case 2:
            random.shuffle(header[a]["shape"])
        case 3:
            header[a]["shape"] = random.choice(([], [0], [2**63], [2**32, 2**32], [-1], header[b]["shape"]))
        case _:
            header[a]["data_offsets"] = random.choice((header[b]["data_offsets"], [0, len(data)], [0, 2**64 - 1]))
    return replace(files, weights=with_length(json.dumps(header).encode(), data))


def weights_length(files: Files, random: Random) -> Files:
    """Lie about how long the header of model.safetensors is."""
    length = struct.unpack("<Q", files.weights[:8])[0]
    near = length + random.randint(-40, 40)
    lies = (0, 1, near, len(files.weights), len(files.weights) - 8, 10**8, 2**31, 2**32, 2**63, 2**64 - 1)
    return replace(files, weights=struct.pack("<Q", random.choice(lies)) + files.weights[8:])


def sealed(mutation: Mutation, files: Files, random: Random) -> Files:
    """Mutate config.json, then make the digest that the weights carry of it right, as a forger would."""
    mutated = mutation(files, random)
    try:
        config = json.loads(mutated.config)
        config = {key: value for key, value in config.items() if key not in ("format", "format_version")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError, AttributeError):  # not JSON of an object: there is nothing to seal
        return mutated
    header, data = header_and_data(files)
    header["__metadata__"]["config_sha256"] = digest
    return replace(mutated, weights=with_length(json.dumps(header).encode(), data))


def header_and_data(files: Files) -> tuple[dict[str, Any], bytes]:
    """The two parts of model.safetensors."""
    end = 8 + struct.unpack("<Q", files.weights[:8])[0]
    return json.loads(files.weights[8:end]), files.weights[end:]


def with_length(header: bytes, data: bytes) -> bytes:
    """A safetensors file of a header and data."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


# --- all of them ----------------------------------------------------------------------------------------------------

MUTATIONS: dict[str, Mutation] = {
    "config.json: bytes flipped, cut, inserted, deleted, moved": config_bytes,
    "config.json: fields swapped, dropped, renamed, of another type": config_fields,
    "config.json: trees too deep, wide or large": config_bomb,
    "model.safetensors: bytes flipped, cut, inserted, deleted, moved": weights_bytes,
    "model.safetensors: bytes of the header": weights_header_bytes,
    "model.safetensors: bits of the weights": weights_bits,
    "model.safetensors: fields of the header": weights_fields,
    "model.safetensors: tensors swapped, of another type or shape": weights_swaps,
    "model.safetensors: lies about the header's length": weights_length,
    "forged: fields of config.json changed, its digest made right": partial(sealed, config_fields),
    "forged: trees too deep, wide or large, their digest made right": partial(sealed, config_bomb),
}
"""By the fault that the table names."""
