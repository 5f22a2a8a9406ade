"""The plug-in for napari: a dock widget that finds instances, what it opens, and sample images.

    napari.yaml   what napari is told before anything of this is imported
    widget        the dock widget: package, layer, Run, Cancel
    choosing      which package, and what it is
    runs          one run in a thread: progress, cancel, one sentence where it fails
    layers        an image out of a layer, and where its labels lie
    packages      what a package is, in the few words that people choose by
    label_layers  label images that spoco-zoo has written, as layers
    drops         what is dropped: packages and label images
    samples       simulated images

napari and Qt are named in here only, and come with the extra `napari` or with napari itself.
"""
