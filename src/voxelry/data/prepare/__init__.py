"""From folders of volumes and labels to what `reconstruct` learns from: isotropic volumes, shapes and slices."""
