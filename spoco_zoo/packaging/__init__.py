"""From a run folder to a bioimage.io package that was proven before it got its name."""

from spoco_zoo.packaging.export import ExportOptions, export_package, export_packages

__all__ = ["ExportOptions", "export_package", "export_packages"]
