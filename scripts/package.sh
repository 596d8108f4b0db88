#!/usr/bin/env bash
# Makes the packages of one build, for `make package`:
#
#     scripts/package.sh TREE [FOLDER]
#
# TREE is where `cargo pgrx package` has laid out the files of a build with PORTABLE=1. In
# FOLDER, else target/package, this leaves
#
#     postgresql-15-colcrypt_0.1.0-1_amd64.deb   laid out as Debian's PostgreSQL is
#     colcrypt-0.1.0-pg15-x86_64.tar.gz          laid out as TREE, to unpack below /
#
# The same commit and the same build give the same bytes: times are those of
# SOURCE_DATE_EPOCH, else of the commit, and owner is root whoever runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

PG_CONFIG=$(find_pg_config)
NAME=colcrypt
# Of the package, for changes to it between two versions of colcrypt.
REVISION=1
# As Debian's own tools have it: set these for a package that others shall get.
MAINTAINER="${DEBFULLNAME:-the colcrypt developers} <${DEBEMAIL:-colcrypt@localhost}>"
# dpkg-shlibdeps looks at the library with objdump.
PACKAGES=(dpkg-dev binutils)

main() {
    [ $# -ge 1 ] || die "which tree? Use: make package"
    TREE=$(realpath "$1")
    OUTPUT=$(realpath -m "${2:-target/package}")
    LIBRARY=$TREE$("$PG_CONFIG" --pkglibdir)/$NAME.so
    EXTENSION=$TREE$("$PG_CONFIG" --sharedir)/extension
    VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    MAJOR=$(pg_major "$PG_CONFIG")
    check_tree
    install_packages "${PACKAGES[@]}"

    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
    export LC_ALL=C.UTF-8 TZ=UTC
    umask 022
    mkdir -p "$OUTPUT"
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    make_deb
    make_tar
}

check_tree() {
    local file
    for file in "$LIBRARY" "$EXTENSION/$NAME.control" "$EXTENSION/$NAME--$VERSION.sql"; do
        [ -f "$file" ] || die "no $file"
    done
    # What src/cpu.c says, and only a build for a newer CPU holds.
    if grep -q --text "was built for a newer CPU" "$LIBRARY"; then
        die "$LIBRARY runs on newer CPUs only: build with PORTABLE=1"
    fi
}

make_deb() {
    PACKAGE=postgresql-$MAJOR-$NAME
    ROOT=$WORK/debian/$PACKAGE
    DOC=$ROOT/usr/share/doc/$PACKAGE
    lay_out_extension
    lay_out_docs
    describe
    (
        cd "$WORK"
        # Needs no debhelper: which libraries it needs, what the control file says, and the
        # checksums.
        dpkg-shlibdeps -e"$ROOT/usr/lib/postgresql/$MAJOR/lib/$NAME.so"
        dpkg-gencontrol -p"$PACKAGE" -P"$ROOT"
        (cd "$ROOT" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
        find "$ROOT" -exec chmod u=rwX,go=rX {} +
        dpkg-deb --root-owner-group -Zxz --build "$ROOT" "$OUTPUT" >/dev/null
    )
    say "$OUTPUT/${PACKAGE}_$VERSION-${REVISION}_$(dpkg --print-architecture).deb"
}

# In Debian's folders, wherever the PostgreSQL that it was built with has its own.
lay_out_extension() {
    local library=$ROOT/usr/lib/postgresql/$MAJOR/lib
    local extension=$ROOT/usr/share/postgresql/$MAJOR/extension
    install -d "$library" "$extension" "$ROOT/DEBIAN"
    install -m 644 "$LIBRARY" "$library"
    strip --strip-unneeded --remove-section=.comment "$library/$NAME.so"
    install -m 644 "$EXTENSION/$NAME"* "$extension"
}

lay_out_docs() {
    install -d "$DOC/docs"
    install -m 644 README.md SECURITY.md "$DOC"
    # README.md leads to these two.
    install -m 644 CONTRIBUTING.md "$DOC"
    ln -s copyright "$DOC/LICENSE"
    install -m 644 docs/*.md "$DOC/docs"
    install -m 644 CHANGELOG.md "$DOC/changelog"
    debian_changelog >"$DOC/changelog.Debian"
    copyright >"$DOC/copyright"
    scripts/third_party.py "pg$MAJOR" >"$DOC/third-party-licences"
    gzip -9n "$DOC/changelog" "$DOC/changelog.Debian" "$DOC/third-party-licences"
    overrides >"$WORK/overrides"
    install -D -m 644 "$WORK/overrides" "$ROOT/usr/share/lintian/overrides/$PACKAGE"
}

# What lintian need not say.
overrides() {
    printf '%s\n' "# This package is not for Debian's archive, and so no bug there asks for it." \
        "$PACKAGE: initial-upload-closes-no-bugs *"
    if [ -z "${DEBEMAIL:-}" ]; then
        printf '%s\n' "# Made without DEBEMAIL: for whoever made it." \
            "$PACKAGE: bogus-mail-host *" "$PACKAGE: bogus-mail-host-in-debian-changelog *"
    fi
}

debian_changelog() {
    printf '%s\n' "$NAME ($VERSION-$REVISION) unstable; urgency=medium" "" \
        "  * colcrypt $VERSION: see changelog.gz." "" \
        " -- $MAINTAINER  $(date -R -d "@$SOURCE_DATE_EPOCH")"
}

# In Debian's machine-readable form: a dot stands for an empty line.
copyright() {
    printf '%s\n' "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/" \
        "Upstream-Name: $NAME" "" "Files: *" \
        "Copyright: $(sed -n 's/^Copyright (c) //p' LICENSE)" "License: PostgreSQL" \
        "Comment: $NAME.so holds code of others, which third-party-licences.gz names with their" \
        " licences." "" "License: PostgreSQL"
    sed '1,/^Copyright/d' LICENSE | sed '1{/^$/d}; s/^$/./; s/^/ /'
}

# What dpkg-shlibdeps and dpkg-gencontrol read.
describe() {
    debian_changelog >"$WORK/debian/changelog"
    cat >"$WORK/debian/control" <<EOF
Source: $NAME
Section: database
Priority: optional
Maintainer: $MAINTAINER
Standards-Version: 4.6.2

Package: $PACKAGE
Architecture: any
Depends: postgresql-$MAJOR, \${shlibs:Depends}
Description: transparent column encryption for PostgreSQL $MAJOR
 colcrypt gives PostgreSQL column types that are encrypted when a row is
 written and decrypted when it is read: texts, JSON documents and bytes.
 Ordinary SQL, drivers and ORMs keep working, and equality search uses
 indexes. Keys come from a file, a command, an environment variable or a
 setting, and are rotated while others work.
EOF
}

make_tar() {
    local tar
    tar=$OUTPUT/$NAME-$VERSION-pg$MAJOR-$(uname -m).tar.gz
    tar -C "$TREE" --sort=name --owner=root:0 --group=root:0 --mode=u=rwX,go=rX \
        --mtime="@$SOURCE_DATE_EPOCH" -cf - . | gzip -9n >"$tar"
    say "$tar"
}

main "$@"
