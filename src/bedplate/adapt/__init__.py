"""One base into many workers: tasks, and methods that train a head, a low-rank change or everything."""
