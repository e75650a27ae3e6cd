#!/bin/sh
# What the C++ compiler must be told when llama.cpp is built for this machine; usually nothing.
#
# GCC before 11.5, 12.4 and 13.3 drops what is stored before _tile_loadconfig (GCC bug 114098), and
# so llama.cpp's AMX code ends the process with SIGSEGV at its first batch: for example with Debian
# 12's GCC on a Xeon with AMX. Without these two optimisations the stores stay.
if grep -qs amx_tile /proc/cpuinfo; then
    echo "-fno-tree-dse -fno-dse"
fi
