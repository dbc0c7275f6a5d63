"""Files that are not on disk: where an address points, what may be shown of it, what its failures mean."""

from headatlas.storage.addresses import is_url, shown
from headatlas.storage.patience import StorageError
from headatlas.storage.place import Place, StoragePath, place

__all__ = ["Place", "StorageError", "StoragePath", "is_url", "place", "shown"]
