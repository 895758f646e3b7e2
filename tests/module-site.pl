#!/usr/bin/perl
# Writes the bwr_disk of a stopped site of the kernel module, from the module's format alone: superblock, and a ring with every page in which
# two images of the disk differ. Played by tests/two-nodes.sh for the guide from-module.md.
#
# Usage: module-site.pl primary|secondary SITE BEFORE AFTER BWR_DISK
use strict;
use warnings;
no warnings 'portable';

my ($role, $site, $before, $after, $bwr_disk) = @ARGV;
my ($page, $entry, $magic, $uuid, $first) = (4096, 9, 0x3e953ac16a4227b9, 77, 100);

# CRC-32, begun with zero and not inverted.
my @table = map { my $crc = $_; $crc = $crc & 1 ? $crc >> 1 ^ 0xedb88320 : $crc >> 1 for 1 .. 8; $crc } 0 .. 255;
sub crc {
    my $crc = 0;
    $crc = $crc >> 8 ^ $table[($crc ^ $_) & 255] for unpack 'C*', shift;
    return $crc;
}

open my $old, '<:raw', $before or die "$before: $!";
open my $new, '<:raw', $after or die "$after: $!";
my $size = -s $before;
my $start = (3 << 11) + $entry - (3 << 11) % $entry;
my ($ring, $at, $sequence) = ('', $start, $first);
for (my $sector = 0; read($old, my $was, $page) && read($new, my $is, $page); $sector += $page / 512) {
    next if $was eq $is;
    $sequence++;
    $ring .= pack('Q<5 x472', $uuid, $sequence, crc($is), $at, $sector) . $is;
    $at += $entry;
}
my $pages = $sequence - $first;
die "the images do not differ\n" if $role eq 'primary' && !$pages;

# In sectors; there is room behind the last entry.
my $end = $at + 20 * $entry;
my @heads = (~0) x 32;
$heads[$site] = $start;
my $superblock = pack 'Q<7 Q<32 Q<', $magic, 0, $size, $end * 512, 0, 2048, $start, @heads, $at;
$superblock .= pack 'x8 C x55 C x7 Q<2', 255, $role eq 'primary' ? $site : 255, $uuid, $sequence;
open my $out, '+>:raw', $bwr_disk or die "$bwr_disk: $!";
print $out $superblock;
seek $out, $start * 512, 0;
print $out $ring;
truncate $out, $end * 512;
close $out or die "$bwr_disk: $!";
print "$pages\n";
