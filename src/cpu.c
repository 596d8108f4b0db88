/*
 * The library's entry point for PostgreSQL: refuses to load on a CPU that lacks
 * what the Rust code was compiled for, with an error message instead of SIGILL
 * in the middle of a query.
 *
 * In C, because this file must run on any x86-64: build.rs compiles it without
 * the flags of .cargo/config.toml, while in Rust they hold for every line, the
 * error message's included.
 */
#include "postgres.h"

extern void colcrypt_init(void);
extern void colcrypt_load(void);

#ifdef COLCRYPT_NEEDS_X86_64_V3
#include <cpuid.h>

typedef struct
{
	const char *name;
	unsigned int register_bits;
	int			bit;
} Feature;

/* Whether the operating system saves the AVX registers (Intel SDM, XGETBV). */
static bool
avx_state_enabled(unsigned int ecx1)
{
	unsigned int low,
				high;

	if (!(ecx1 & bit_OSXSAVE))
		return false;
	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (low & 6) == 6;
}

/* x86-64-v3 as in the psABI, AES-NI and PCLMULQDQ. */
static void
check_cpu(void)
{
	unsigned int eax = 0,
				ebx = 0,
				ecx1 = 0,
				edx = 0,
				ebx7 = 0,
				ecx = 0,
				ecx_extended = 0;
	char		missing[256] = "";

	(void) __get_cpuid(1, &eax, &ebx, &ecx1, &edx);
	(void) __get_cpuid_count(7, 0, &eax, &ebx7, &ecx, &edx);
	(void) __get_cpuid(0x80000001, &eax, &ebx, &ecx_extended, &edx);

	const Feature features[] = {
		{"sse3", ecx1, 0}, {"pclmulqdq", ecx1, 1}, {"ssse3", ecx1, 9},
		{"fma", ecx1, 12}, {"sse4.1", ecx1, 19}, {"sse4.2", ecx1, 20},
		{"movbe", ecx1, 22}, {"popcnt", ecx1, 23}, {"aes", ecx1, 25},
		{"avx", avx_state_enabled(ecx1) ? ecx1 : 0, 28}, {"f16c", ecx1, 29},
		{"bmi1", ebx7, 3}, {"avx2", ebx7, 5}, {"bmi2", ebx7, 8},
		{"lzcnt", ecx_extended, 5},
	};

	for (size_t i = 0; i < lengthof(features); i++)
	{
		if (features[i].register_bits >> features[i].bit & 1)
			continue;
		if (missing[0] != '\0')
			strlcat(missing, ", ", sizeof(missing));
		strlcat(missing, features[i].name, sizeof(missing));
	}
	if (missing[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("colcrypt was built for a newer CPU: this one lacks %s", missing),
				 errhint("Build and install colcrypt with \"make install PORTABLE=1\".")));
}
#endif

void
colcrypt_load(void)
{
#ifdef COLCRYPT_NEEDS_X86_64_V3
	check_cpu();
#endif
	colcrypt_init();
}
