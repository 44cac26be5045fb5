#!/usr/bin/perl
# SPDX-License-Identifier: GPL-2.0
# log-texts.pl PAGE FILE...: prints all texts in the Rust files that PAGE does not have. A text is a string
# literal that begins a log line, or has several words. Descriptions and tests do not count. {...} in a text
# matches anything on the page that is not too long.
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
	while ($source =~ m{//[^\n]*|b?'(?:[^'\\\n]|\\.)'|(\b(?:pr|dev)_\w+!\(\s*(?:[^"(),]+,\s*)?)?"((?:[^"\\]|\\.)*)"}sg) {
		my ($is_line, $text) = (defined($1), $2);

		next if !defined($text);
		$text =~ s/\\\n\s*//g;
		$text =~ s/\\n$//;
		$text =~ s/\\"/"/g;
		my $words = $text =~ s/\{[^}]*\}//gr;
		next if $words !~ ($is_line ? qr/[A-Za-z]/ : qr/[A-Za-z].* .*[A-Za-z]/);
		my $pattern = join('.{1,100}?', map { quotemeta } split(/\{[^}]*\}/, $text, -1));
		print "$name: $text\n" if $page !~ /(?<!\w)$pattern(?!\w)/;
	}
}
