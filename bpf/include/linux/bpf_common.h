/* SPDX-License-Identifier: GPL-2.0-only. Empty: bcc includes it and needs nothing from it. */
