"""Counts how many bytes of text each token stands for, to give loss per byte.

Bits per byte do not depend on how a tokenizer cuts text, so models of different tokenizers compare.
Added over a document, the bytes are those of its own text in UTF-8: tokens around documents count
none, and neither does the space that a tokenizer puts before the first word. What a tokenizer does
to a text before it cuts it (Unicode normalization, SentencePiece reading `▁` as a space) stays.

Shapes: V vocabulary, B batch, S sequence.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from itt_composer.data.manifest import ShardSettings

UNKNOWN = -1  # of a token that stands for text which the tokenizer has no piece for
SENTENCEPIECE_SPACE, BYTE_LEVEL_SPACE = "▁", "Ġ"


@dataclass(frozen=True)
class TokenBytes:
    """Bytes by token.

    Attributes:
        bytes_V: of each token's text, int64.
        is_prefix_V: whether a token begins with the space that the tokenizer itself puts before
            the first word of a document, if it is the document's first.
        boundary: the token that stands before each document's first.
    """

    bytes_V: Tensor
    is_prefix_V: Tensor
    boundary: int

    def count(self, input_ids_BS: Tensor) -> int | None:
        """Count the bytes of all tokens but each row's first; None if a token's text is unknown."""
        ids, before = input_ids_BS[:, 1:], input_ids_BS[:, :-1]
        bytes_BS = self.bytes_V[ids]
        if (bytes_BS == UNKNOWN).any():
            return None
        added_BS = self.is_prefix_V[ids] & (before == self.boundary)
        return int(bytes_BS.sum() - added_BS.sum())


def read_token_bytes(data: Path, manifest: ShardSettings) -> TokenBytes | None:
    """Read the table of the tokenizer that lies beside shards.

    Args:
        data: the folder of shards.
        manifest: its content.

    Returns:
        None for a tokenizer whose tokens do not show their bytes, such as WordPiece.
    """
    path = data / manifest.tokenizer.file
    of_file = _bytes_of_sentencepiece if path.suffix == ".model" else _bytes_of_byte_level
    table = of_file(path.read_bytes())
    if table is None:
        return None
    sizes, is_prefix = table
    bos, eos = manifest.bos_id, manifest.eos_id
    for token in (bos, eos):
        if token is not None:
            sizes[token], is_prefix[token] = 0, False
    boundary = eos if bos is None else bos
    return TokenBytes(torch.tensor(sizes), torch.tensor(is_prefix), boundary)


def _bytes_of_sentencepiece(content: bytes) -> tuple[list[int], list[bool]]:
    """Return bytes of every piece, and whether it begins with the space before a document."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=content)
    pieces = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    has_prefix = processor.encode("a", out_type=str)[0].startswith(SENTENCEPIECE_SPACE)

    def size(number: int, piece: str) -> int:
        if processor.is_unknown(number):
            return UNKNOWN
        if processor.is_byte(number):
            return 1
        if processor.is_control(number):
            return 0
        return len(piece.replace(SENTENCEPIECE_SPACE, " ").encode())

    sizes = [size(number, piece) for number, piece in enumerate(pieces)]
    return sizes, [has_prefix and piece.startswith(SENTENCEPIECE_SPACE) for piece in pieces]


def _bytes_of_byte_level(content: bytes) -> tuple[list[int], list[bool]] | None:
    """Return the same for a `tokenizer.json` that writes each byte as one character."""
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = Tokenizer.from_str(content.decode())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    is_byte_level = '"type":"ByteLevel"' in json.dumps(
        json.loads(content).get("pre_tokenizer"), separators=(",", ":")
    )
    if not is_byte_level or not set(ByteLevel.alphabet()) <= vocabulary.keys():
        return None
    first = tokenizer.encode("a", add_special_tokens=False).tokens[0]
    has_prefix = first.startswith(BYTE_LEVEL_SPACE)
    added = tokenizer.get_added_tokens_decoder()
    count = max(vocabulary.values()) + 1
    sizes, is_prefix = [0] * count, [False] * count
    for token, number in vocabulary.items():
        # Added tokens stand in the vocabulary as they are written in a text.
        sizes[number] = len(token.encode()) if number in added else len(token)
        is_prefix[number] = has_prefix and number not in added and token[0] == BYTE_LEVEL_SPACE
    return sizes, is_prefix
