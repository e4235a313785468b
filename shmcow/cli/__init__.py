"""The command line: parsing and printing only. Imported by the ``shmcow`` command, never by the library."""
