"""Beyond one machine; the only place that may import Ray. Empty until the cluster issue."""
