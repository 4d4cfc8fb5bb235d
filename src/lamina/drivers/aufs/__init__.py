"""The AUFS driver: Docker's own layout, on kernels with AUFS and on those without."""

from lamina.drivers.aufs.driver import AufsDriver

__all__ = ["AufsDriver"]
