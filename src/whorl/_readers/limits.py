"""Every cap on foreign input, in one place. Starting values (ours); sizes in bytes unless named otherwise."""

MB = 1_000_000

# safetensors
MAX_HEADER_LOCAL = 100 * MB  # the reference parser's own limit
MAX_HEADER_REMOTE = 25 * MB
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 16  # NumPy stops at 64; no model comes near
MAX_NAME_CHARACTERS = 512
MAX_METADATA = 1 * MB
MAX_COUNT = 2**63 - 1  # largest integer in shapes and offsets, and largest number of bytes of one tensor
HEADER_DEPTH = 3

# GGUF
GGUF_MAX_HEADER = 200 * MB  # the longest headers met in practice are tokenizers of about 30 MB
GGUF_MAX_KEYS = 100_000
GGUF_MAX_STRINGS = 3_000_000  # in all arrays together; a vocabulary of 262k with its merges has under a million
GGUF_MAX_KEY_BYTES = 65_535  # of the format
GGUF_MAX_NAME_BYTES = 64  # of the format
GGUF_MAX_DIMENSIONS = 4  # of the format
GGUF_MAX_ALIGNMENT = 65_536
GGUF_MAX_PARTS = 1000

# JSON
MAX_JSON = 50 * MB
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 20_000_000  # bounds the memory of the parsed objects before they are made
MAX_DIGITS = 20
MAX_DIGITS_PYTHON = 400  # a float printed as a whole number has up to 309
MAX_FINGERPRINT_BYTES = 50 * MB

# endpoints
MAX_ANSWER = 4 * MB  # 1000 tokens with 20 alternatives each are about 2 MB

# repositories and folders
MAX_SHARDS = 10_000
MAX_FILE_NAME_BYTES = 255  # of ext4, APFS and NTFS

# tokenizers
MAX_TOKENS = 4_000_000  # and ids; the largest vocabularies have about a million

# model configurations
MAX_CONFIG_SIZE = 100_000_000  # widths, vocabulary, positions: about 1000 times the largest known
MAX_LAYERS = 10_000
MAX_HEADS = 100_000
MAX_EXPERTS = 100_000
MAX_CONFIG_TEXT_CHARACTERS = 10_000

# transcripts and texts to make prompts of
MAX_TRANSCRIPT_LINE = 1 * MB  # also of one row of an imported file
MAX_ROWS = 10_000_000  # in one file

# reading
READ_BLOCK = 1024 * 1024  # stays in the cache between the read and the conversion
MAX_DECODED = 64 * 1024**3  # one call to `rows`; larger tensors are read in row blocks

# Fingerprint files.
FINGERPRINT_SCHEMA = 1
