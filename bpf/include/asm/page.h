/* SPDX-License-Identifier: GPL-2.0-only */
#define PAGE_SIZE 4096 /* of the ring buffers' sizes; the loader refuses machines with larger pages */
