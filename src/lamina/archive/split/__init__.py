"""tar-split: what is in a layer's tar besides its files' contents.

An archive is taken apart on the way into a layer, into the files and a list of records: raw
bytes (headers, padding, the end) and references to files, in stream order. From both the same
archive is put together again, byte for byte, so that its digest holds. The records are those of
github.com/vbatts/tar-split as Docker keeps them (``layerdb/sha256/*/tar-split.json.gz``):
Docker's can be read here and ours there (see :mod:`lamina.archive.split.records` for the
exceptions).
"""

from lamina.archive.split.assemble import assemble
from lamina.archive.split.recorder import SplitRecorder

__all__ = ["SplitRecorder", "assemble"]
