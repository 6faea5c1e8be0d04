"""Who may control whom: the kernel's rules, one file per family of verbs."""
