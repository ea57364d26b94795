"""The tests of the Host protocol: on the embedded host always, on a real SD.Next where --host-root names one."""
