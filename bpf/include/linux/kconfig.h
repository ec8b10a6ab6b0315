/* SPDX-License-Identifier: GPL-2.0-only */
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_64BIT 1
