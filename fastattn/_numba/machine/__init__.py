"""What a CPU does: vectors, loads and stores, storage types, register tiles, elementary functions.

Each function stands for instructions. Nothing here knows a record or an operation; it may import
`compiler`.
"""
