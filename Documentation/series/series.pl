#!/usr/bin/perl
# SPDX-License-Identifier: GPL-2.0
# series.pl [TREE]: writes this module as patches for the kernel tree TREE (build/linux-source) to build/series, in the
# form of git format-patch. README.rst documents the descriptions of the patches.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename;
use File::Copy;
use File::Path qw(make_path remove_tree);

my $here = abs_path(dirname($0));
my $top = abs_path("$here/../..");
my $tree = abs_path($ARGV[0] // "$top/build/linux-source");
my $out = "$top/build/series";
my $work = "$out/work";
my $author = 'Whoever submits this';
my $email = 'submitter@example.invalid';

# Maps paths of the crate hyperv to paths of the crate kernel. prepare() adds the modules in files.
my %moved = (
	'linux::module::this_module' => 'module::this_module',
	'compat::BoundInternal' => 'device::BoundInternal',
	'compat::PollCondVarBox' => 'sync::poll::PollCondVarBox',
	'compat::SpinLockIrq' => 'sync::SpinLockIrq',
	'compat::new_spinlock_irq' => 'new_spinlock_irq',
	'compat::vmbus_sendpacket' => 'bindings::vmbus_sendpacket',
);

sub read_file { my ($name) = @_; local $/; open my $f, '<', $name or die "$name: $!\n"; return <$f> }

sub write_file
{
	my ($name, $text) = @_;
	make_path(dirname($name));
	open my $f, '>', $name or die "$name: $!\n";
	print $f $text;
	close $f or die "$name: $!\n";
}

sub run { system(@_) == 0 or die "failed: @_\n" }

# Reads a description: a message, a line "---", and directives.
sub description
{
	my ($name) = @_;
	my ($message, $rest) = split /^---\n/m, read_file($name), 2;
	my @directives;
	for (split /\n/, $rest) {
		if (/^\t(.*)/ || /^()$/) {
			$directives[-1]{text} .= "$1\n" if @directives;
		} elsif (!/^#/) {
			my ($verb, @arguments) = split ' ';
			push @directives, { verb => $verb, arguments => \@arguments, text => '' };
		}
	}
	return { name => basename($name, '.txt'), message => $message, directives => \@directives };
}

# ---- Paths in Rust

# Returns the path in the crate kernel for a path in the crate hyperv. The longest prefix in the map decides.
sub moved
{
	my @path = split /::/, shift;
	for (my $n = @path; $n > 0; $n--) {
		my $to = $moved{join '::', @path[0 .. $n - 1]};
		return join '::', $to, @path[$n .. $#path] if defined $to;
	}
	return join '::', @path;
}

# Returns the new path for an imported path that begins with a crate. Keeps the imported name by "as".
sub new_path
{
	my ($path, $is_kernel) = @_;
	my $new = path_of_crate($path, $is_kernel);
	my ($was, $is) = map { /(\w+|\*)$/ } $path, $new;
	return $was eq $is ? $new : "$new as $was";
}

sub path_of_crate
{
	my ($path, $is_kernel) = @_;
	my ($crate, $rest) = split /::/, $path, 2;
	return $path unless defined $rest;
	return 'crate::' . ($crate eq 'crate' ? moved($rest) : $rest) if $is_kernel && $crate =~ /^(crate|kernel)$/;
	return 'kernel::' . moved($rest) if !$is_kernel && $crate eq 'hyperv';
	return $path;
}

# Returns the paths in a tree of imports.
sub flatten
{
	my ($prefix, $text) = @_;
	my ($depth, $item, @paths) = (0, '');
	for (split /([{},])/, $text) {
		if ($_ eq ',' && $depth == 0) {
			push @paths, item($prefix, $item);
			$item = '';
			next;
		}
		$depth++ if $_ eq '{';
		$depth-- if $_ eq '}';
		$item .= $_;
	}
	return @paths, item($prefix, $item);
}

sub item
{
	my ($prefix, $item) = @_;
	$item =~ s/^\s+|\s+$//g;
	return () if $item eq '';
	return flatten("$prefix$1", $2) if $item =~ /^([\w:]*)\{(.*)\}$/s;
	return "$prefix$item" =~ s/::self$//r;
}

# Sorts like rustfmt: self, modules and functions, types, constants, "*".
sub rank { my ($n) = @_; return $n =~ /^self\b/ ? 0 : $n eq '*' ? 9 : $n !~ /[A-Z]/ ? 1 : $n =~ /[a-z]/ ? 2 : 3 }

sub sorted { return sort { rank((split / /, $a)[0]) <=> rank((split / /, $b)[0]) || $a cmp $b } @_ }

# Returns a tree of imports for these paths. rustfmt indents it.
sub grouped
{
	my %below;
	for (@_) {
		my ($first, $rest) = split /::/, $_, 2;
		push @{ $below{$first} }, defined $rest ? $rest : '';
	}
	my @items;
	# Join a renamed module and the imports from this module.
	for (grep { / as / } keys %below) {
		my ($name, $alias) = split / as /;
		next unless $below{$name};
		push @{ $below{$name} }, "self as $alias";
		delete $below{$_};
	}
	for my $name (sorted(keys %below)) {
		my %rest = map { $_ => 1 } @{ $below{$name} };
		my $own = delete $rest{''};
		my @rest = keys %rest;
		push @rest, 'self' if $own && @rest;
		push @items, @rest ? "$name\::" . grouped(@rest) : $name;
	}
	return $items[0] if @items == 1 && $items[0] !~ /^self/;
	return "{\n" . join(",\n", @items) . ", //\n}";
}

# Rewrites adjacent imports.
sub imports
{
	my ($text, $is_kernel) = @_;
	my %roots;
	while ($text =~ /^( *)(pub(?:\([\w ]+\))? )?use ([^;]+);/mg) {
		my ($indent, $visibility, $tree) = ($1, $2 // '', $3);
		$tree =~ s{//.*$}{}mg;
		for my $path (flatten('', $tree)) {
			$path = new_path($path, $is_kernel);
			next if $path eq 'crate::compat';
			my ($root) = split /::/, $path;
			push @{ $roots{"$indent$visibility"}{$root} }, $path;
		}
	}
	my $new = '';
	for my $visibility (sort keys %roots) {
		for my $root (sort keys %{ $roots{$visibility} }) {
			my @paths = @{ $roots{$visibility}{$root} };
			$new .= "${visibility}use " . grouped(@paths) . ";\n";
		}
	}
	return $new;
}

# Rewrites a Rust file for the crate kernel, or for a driver.
sub rewritten
{
	my ($text, $is_kernel) = @_;
	$text =~ s/^((?: *(?:pub(?:\([\w ]+\))? )?use [^;]+;\n)+)/imports($1, $is_kernel)/mge;
	# A doctest of the kernel cannot contain a module, so do not compile these examples there.
	$text =~ s{^(//[/!] ```)no_run\n(.*?^//[/!] ```\n)}{"${1}ignore\n" . $2 =~ s/^\/\/[\/!] #(?: .*)?\n//mgr}msge;
	my @lines = split /^/, $text;
	my $in_use = 0;
	for (@lines) {
		$in_use = 1 if /^ *(?:pub(?:\([\w ]+\))? )?use /;
		if (!$in_use) {
			if ($is_kernel) {
				s/(?<!\w)(?<!::)(\$?)crate::([a-z][\w:]*\w)/"${1}crate::" . moved($2)/ge;
				s/(?<![\w:])(compat::\w+)/moved($1)/ge;
				s/(?<![\w:\$])kernel::(?=[\w])/crate::/g unless m{^\s*//[/!]? (?:#|use)};
				s/\bhyperv::(?=\w)/kernel::/g;
				s/\brust_helper_//g;
				s/\bRUST_CONST_HELPER_//g;
			} else {
				s/(?<![\w:])hyperv::([a-z][\w:]*\w)/'kernel::' . moved($1)/ge;
			}
		}
		$in_use = 0 if /;/;
	}
	my $new = join '', @lines;
	$new =~ s/((?:^ *\/\/[\/!]? (?![-*#|`>]|\d+\. )\S.*\n)+)/wrapped($1)/mge;
	return $new;
}

# Wraps a paragraph of a comment if a line is longer than the kernel allows.
sub wrapped
{
	my ($text) = @_;
	my ($prefix) = $text =~ m{^( *//[/!]? )};
	return $text if $text !~ /^.{101}/m || $text =~ m{^(?!\Q$prefix\E)}m;
	my ($new, $line) = ('', $prefix =~ s/ $//r);
	for (map { split ' ' } $text =~ m{^ *//[/!]? (.*)$}mg) {
		if (length("$line $_") > 100) {
			$new .= "$line\n";
			$line = $prefix =~ s/ $//r;
		}
		$line .= " $_";
	}
	return "$new$line\n";
}

# ---- Pieces of files

# Returns the helper function of this name, with its comment, in the form of the kernel's rust/helpers.
sub helper
{
	my ($name) = @_;
	for my $file ('helpers.c', 'compat.c') {
		my $text = read_file("$top/rust/helpers/$file");
		next unless $text =~ m~((?:^/\*(?:(?!\*/).)*\*/\n)?^\w[^\n;{]*\brust_helper_$name\([^;{]*\n\{\n.*?^\}\n)~ms;
		return $1 =~ s/^(?=\w[^\n]*\brust_helper_$name\()/__rust_helper\n/mr;
	}
	die "there is no helper $name\n";
}

# Finds the place for a line in a file's first paragraph of sorted lines of this kind. Returns the index and the lines.
sub insert_sorted
{
	my ($name, $line, $kind) = @_;
	my @lines = split /^/, read_file("$work/$name");
	my ($at, $last);
	for my $i (0 .. $#lines) {
		next unless $lines[$i] =~ $kind;
		last if defined $last && $lines[$i] =~ /^$/;
		if ($lines[$i] gt $line && !defined $at) {
			$at = $i;
			# Do not separate a line from its attribute or condition.
			$at-- while $at > 0 && $lines[$at - 1] =~ /^(#\[|#if)/;
		}
		$last = $i;
	}
	die "$name has no place for $line" unless defined $last;
	$at //= $last + 1;
	return ($at, \@lines);
}

sub needs
{
	my ($name) = @_;
	return if -e "$work/$name" || !-e "$tree/$name";
	make_path(dirname("$work/$name"));
	copy("$tree/$name", "$work/$name") or die "$tree/$name: $!\n";
}

my %do = (
	# take SRC DST: copies the prepared file.
	take => sub {
		my ($d, $src, $dst) = @_;
		write_file("$work/$dst", read_file("$out/taken/$dst"));
		chmod((stat "$top/$src")[2] & 0777, "$work/$dst");
	},
	# file DST: creates a file with the directive's text.
	file => sub {
		my ($d, $dst) = @_;
		write_file("$work/$dst", $d->{text});
	},
	# helpers FILE CONDITION HEADER,... NAME...: creates a file of rust/helpers, or extends it.
	helpers => sub {
		my ($d, $file, $condition, $headers, @names) = @_;
		my $name = "rust/helpers/$file";
		my $functions = join "\n", map { helper($_) } @names;
		if (-e "$work/$name" || -e "$tree/$name") {
			write_file("$work/$name", read_file("$work/$name") . "\n$functions");
			return;
		}
		my $includes = join '', map { "#include <$_>\n" } split /,/, $headers;
		write_file("$work/$name", "// SPDX-License-Identifier: GPL-2.0\n\n$includes$d->{text}\n$functions");
		my $line = "#include \"$file\"\n";
		my ($at, $lines) = insert_sorted('rust/helpers/helpers.c', $line, qr/^#include "/);
		$line = "#if $condition\n$line#endif\n" if $condition ne '-';
		splice @$lines, $at, 0, $line;
		write_file("$work/rust/helpers/helpers.c", join '', @$lines);
	},
	# header HEADER: adds a header to the bindings.
	header => sub {
		my ($d, $header) = @_;
		my $name = 'rust/bindings/bindings_helper.h';
		my $line = "#include <$header>\n";
		# The first header is not part of the sorted paragraph.
		my ($at, $lines) = insert_sorted($name, $line, qr/^#include <(?!linux\/hrtimer_types)/);
		splice @$lines, $at, 0, $line;
		write_file("$work/$name", join '', @$lines);
	},
	# mod FILE [ATTRIBUTE]: declares a module in its parent.
	mod => sub {
		my ($d, $file, @attribute) = @_;
		my ($parent, $module) = $file =~ m{^(.*)/(\w+)\.rs$} or die "$file\n";
		my $name = $parent eq 'rust/kernel' ? "$parent/lib.rs" : "$parent.rs";
		my $line = "pub mod $module;\n";
		my ($at, $lines) = insert_sorted($name, $line, qr/^pub mod /);
		splice @$lines, $at, 0, (@attribute ? "@attribute\n" : '') . $line;
		write_file("$work/$name", join '', @$lines);
	},
	# insert FILE before|after|append [LINE]: inserts the text before or after the first line that begins with LINE.
	insert => sub {
		my ($d, $name, $where, @begin) = @_;
		my @lines = split /^/, read_file("$work/$name");
		my $begin = join ' ', @begin;
		my ($at) = grep { my $l = $lines[$_]; $l =~ s/^\s+//; $l =~ s/\s+/ /g; index($l, $begin) == 0 } 0 .. $#lines;
		die "$name has no line \"$begin\"\n" unless $where eq 'append' || defined $at;
		$at = $where eq 'append' ? @lines : $where eq 'after' ? $at + 1 : $at;
		splice @lines, $at, 0, $d->{text};
		write_file("$work/$name", join '', @lines);
	},
	# without DST: removes the first match of the text, a regular expression, until a later patch takes the whole file.
	without => sub {
		my ($d, $dst) = @_;
		my ($pattern, $text) = ($d->{text} =~ s/\n\z//r, read_file("$work/$dst"));
		$text =~ s/$pattern//ms or die "$dst: there is no\n$pattern\n";
		write_file("$work/$dst", $text);
	},
	# whole DST: takes a file again.
	whole => sub {
		my ($d, $dst) = @_;
		write_file("$work/$dst", read_file("$out/taken/$dst"));
	},
	# subst DST: prepare() has done this.
	subst => sub { },
);

# Returns the files of the kernel tree that a directive changes.
sub touched
{
	my ($d) = @_;
	my @a = @{ $d->{arguments} };
	return ('rust/helpers/helpers.c', -e "$tree/rust/helpers/$a[0]" ? "rust/helpers/$a[0]" : ()) if $d->{verb} eq 'helpers';
	return 'rust/bindings/bindings_helper.h' if $d->{verb} eq 'header';
	return $a[0] if $d->{verb} eq 'insert';
	if ($d->{verb} eq 'mod') {
		my ($parent) = $a[0] =~ m{^(.*)/};
		return $parent eq 'rust/kernel' ? "$parent/lib.rs" : "$parent.rs";
	}
	return ();
}

# Writes all taken files in their final form to build/series/taken.
sub prepare
{
	my @directives = map { @{ $_->{directives} } } @_;
	my @taken = map { $_->{arguments} } grep { $_->{verb} eq 'take' } @directives;
	for (@taken) {
		my ($src, $dst) = @$_;
		next unless $src =~ m{^rust/hyperv/(.*)\.rs$};
		(my $from = $1) =~ s{/}{::}g;
		(my $to = $dst) =~ s{^rust/kernel/(.*)\.rs$}{$1};
		$to =~ s{/}{::}g;
		$moved{$from} = $to;
	}
	for (@taken) {
		my ($src, $dst) = @$_;
		my $text = read_file("$top/$src");
		$text = rewritten($text, $dst =~ m{^rust/kernel/}) if $dst =~ /\.rs$/;
		write_file("$out/taken/$dst", $text);
	}
	rustfmt(map { $_->[1] } @taken);
	for my $d (grep { $_->{verb} eq 'subst' } @directives) {
		my $dst = $d->{arguments}[0];
		my $text = read_file("$out/taken/$dst");
		$text = replaced($dst, $text, $_) for split /^;;\n/m, $d->{text};
		write_file("$out/taken/$dst", $text);
	}
	rustfmt(map { $_->[1] } @taken);
}

# Formats the Rust files, and the modules that they declare.
sub rustfmt
{
	chdir $top or die;
	run('rust/kdir/enter', 'rustfmt', '--quiet', '--edition', '2021', '--config-path', "$tree/.rustfmt.toml",
	    map { "build/series/taken/$_" } grep { /\.rs$/ } @_);
}

# Replaces all occurrences of a rule's old text.
sub replaced
{
	my ($name, $text, $rule) = @_;
	my ($from, $to) = split /^=>\n/m, $rule, 2;
	die "$name: no \"=>\" in\n$rule" unless defined $to;
	my $pattern = $from =~ /^~(.*)\n\z/ ? $1 : quotemeta $from;
	$text =~ s/$pattern/$to/msg or die "$name: there is no\n$from";
	return $text;
}

our @git = ('git', '-C', $work, '-c', "user.name=$author", '-c', "user.email=$email", '-c', 'commit.gpgsign=false',
	   '-c', 'core.autocrlf=false', '-c', 'core.abbrev=12');
sub git { run(@git, @_) }

remove_tree($out);
make_path($work);
my @patches = map { description($_) } sort glob "$here/[0-9]*.txt";
prepare(@patches);

# The first commit contains the files of the kernel tree that the series changes. The patches follow.
$ENV{GIT_AUTHOR_DATE} = $ENV{GIT_COMMITTER_DATE} = '2026-01-01T00:00:00Z';
needs($_) for map { touched($_) } map { @{ $_->{directives} } } @patches;
git('init', '--quiet', '--initial-branch=base');
git('add', '--force', '--all');
git('commit', '--quiet', '-m', 'base');
for my $patch (@patches) {
	for my $d (@{ $patch->{directives} }) {
		my $do = $do{ $d->{verb} } or die "$patch->{name}: no directive $d->{verb}\n";
		$do->($d, @{ $d->{arguments} });
	}
	git('add', '--force', '--all');
	write_file("$out/message", $patch->{message});
	git('commit', '--quiet', '-F', "../message");
}
git('format-patch', '--quiet', '--no-signature', '--zero-commit', '-o', '..', '--root', 'HEAD~' . @patches . '..');
unlink "$out/message";
print "$_\n" for map { "build/series/" . basename($_) } sort glob "$out/*.patch";
