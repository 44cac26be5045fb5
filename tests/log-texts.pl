#!/usr/bin/perl
# SPDX-License-Identifier: GPL-2.0
# log-texts.pl PAGE FILE...: prints all texts in the Rust files that PAGE does not have. A text is a string
# literal of several words that is not a description and not in a test. {...} in a text matches anything.
use strict;
use warnings;

sub read_file
{
	my ($name) = @_;

	open(my $file, '<', $name) or die "$name: $!\n";
	local $/;
	return <$file>;
}

my $page = read_file(shift @ARGV);
$page =~ s/\s+/ /g;

foreach my $name (@ARGV) {
	my $source = read_file($name);

	# The tests are at the end of a file.
	$source =~ s/^#\[cfg\(any\(test.*//ms;
	# Messages of the compiler.
	$source =~ s/reason = "[^"]*"|\bassert!\(.*?\);//sg;
	# Descriptions for modinfo.
	$source =~ s/^(?:hyperv::module_param_\w+!\(|module! \{).*?^(?:\);|\})//msg;
	while ($source =~ m{//[^\n]*|b?'(?:[^'\\\n]|\\.)'|"((?:[^"\\]|\\.)*)"}sg) {
		my $text = $1;

		next if !defined($text);
		$text =~ s/\\\n\s*//g;
		$text =~ s/\\n$//;
		$text =~ s/\\"/"/g;
		next if $text !~ /[A-Za-z].* .*[A-Za-z]/;
		my $pattern = join('.+?', map { quotemeta } split(/\{[^}]*\}/, $text, -1));
		print "$name: $text\n" if $page !~ /$pattern/;
	}
}
