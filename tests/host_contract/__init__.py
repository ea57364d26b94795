"""The tests of the Host protocol: on the embedded host always, on a real SD.Next where LTX_HOST_ROOT names one."""
