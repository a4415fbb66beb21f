"""Run folders: locks, uploads, runs at URLs, leases that runs hold."""
