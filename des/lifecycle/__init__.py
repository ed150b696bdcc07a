"""A file's life after it was packed: deletion, compaction, erasure, collection of what nobody needs, repair, retention, growth.

Rules that all of it keeps:

1. Heads change only through `des.pack.commit`, so everything here is safe beside packers and readers, and may be killed and run again.
2. What is moved is moved only if the head it is swapped onto still has it where it was copied from.
3. A segment is deleted only when the head that lists it as condemned was swapped in, except what no head ever listed and no writer can still use.
4. Names are random and never used twice, so a name that is condemned, or gone, can never come back.
5. All ages are told by the storage's own clock.
"""

from des.lifecycle.deleting import Deletion
from des.lifecycle.writer import StoreWriter, open_writer

__all__ = ["Deletion", "StoreWriter", "open_writer"]
